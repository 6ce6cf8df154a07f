-- Effects are found by attempt too: a worker says after a restart which of them it began.
-- docs/specs/jobs.md, Effects. The table was not written so far.

DROP TABLE effect;
CREATE TABLE effect(
  coordinator BLOB NOT NULL, token BLOB NOT NULL, job BLOB NOT NULL, task INTEGER NOT NULL,
  attempt INTEGER NOT NULL, state TEXT NOT NULL, result BLOB, expires_ms INTEGER NOT NULL,
  PRIMARY KEY (coordinator, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX effect_by_age ON effect(expires_ms);
CREATE INDEX held_by_age ON held(expires_ms);
