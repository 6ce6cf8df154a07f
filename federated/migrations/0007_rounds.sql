-- Rounds that were, as this machine saw them: `report` is JSON, docs/specs/rounds.md s.9.
CREATE TABLE fed_round (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  grp TEXT NOT NULL,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  number INTEGER NOT NULL,
  began_ms INTEGER NOT NULL,
  report BLOB NOT NULL
);
CREATE INDEX fed_round_name ON fed_round (grp, name, seq);
-- What a restart must not forget of a round under way (s.4): the view promised, the vote and the
-- merged parts it is about.
CREATE TABLE fed_vote (
  federation BLOB NOT NULL,
  number INTEGER NOT NULL,
  promised INTEGER NOT NULL,
  vote BLOB,
  PRIMARY KEY (federation, number)
) WITHOUT ROWID;
-- A federation that this machine is a member of: its settings and the last applied round.
CREATE TABLE fed_state (
  federation BLOB PRIMARY KEY,
  grp BLOB NOT NULL,
  name TEXT NOT NULL,
  body BLOB NOT NULL
) WITHOUT ROWID;
