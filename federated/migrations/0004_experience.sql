-- Which job a lesson is of, and whose it was; and what agents noted about a handler.
ALTER TABLE experience ADD COLUMN job BLOB;
ALTER TABLE experience ADD COLUMN agent TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX experience_by_job ON experience(job) WHERE job IS NOT NULL;

-- score: 2 at first; gone at 0 or less.
CREATE TABLE rule(
  id INTEGER PRIMARY KEY, handler TEXT NOT NULL, agent TEXT NOT NULL, text TEXT NOT NULL,
  score INTEGER NOT NULL, at_ms INTEGER NOT NULL, UNIQUE (handler, text)
) STRICT;

-- A job that runs a plan: peers that may see its rows, 32 bytes each; rules its plan showed, 8 each.
CREATE TABLE planned(
  job BLOB PRIMARY KEY, peers BLOB NOT NULL, rules BLOB NOT NULL
) STRICT, WITHOUT ROWID;
