-- How long tasks took, for estimates after a restart: the newest seconds by handler and size
-- (bits of the bytes of a task's rows; -1: of all sizes). docs/specs/jobs.md, Scheduling.

CREATE TABLE duration(
  handler TEXT NOT NULL, kind INTEGER NOT NULL, at_ms INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (handler, kind)
) STRICT, WITHOUT ROWID;
