-- Jobs that combine the answers of another: one a level of its tree. docs/specs/jobs.md s.2.
CREATE TABLE stage(
  job BLOB PRIMARY KEY, parent BLOB NOT NULL, level INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX stage_by_parent ON stage(parent, level);
