-- Which rows (k; -1: all of a job) and kept answers quote which records of the memory, and which
-- records were erased: what quotes those goes whenever it comes. docs/specs/jobs.md, Erasure.

CREATE TABLE quote(
  record BLOB NOT NULL, job BLOB NOT NULL, k INTEGER NOT NULL, PRIMARY KEY (record, job, k)
) STRICT, WITHOUT ROWID;
CREATE INDEX quote_by_job ON quote(job);
CREATE TABLE cache_quote(
  record BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (record, hash)
) STRICT, WITHOUT ROWID;
CREATE TABLE forgotten(record BLOB PRIMARY KEY, at_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
