-- behaviour.db: what was shown to whom and what came of it. No text, no words of a query. The whole
-- file may be erased at any time. Ids are raw 32-byte blobs, times Unix milliseconds.
-- docs/specs/memory.md, Behaviour log.

CREATE TABLE migration(
  number INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 BLOB NOT NULL, at_ms INTEGER NOT NULL
) STRICT;

-- 32 random bytes: equal questions have equal tags on this machine, and nowhere else.
CREATE TABLE tag_key(n INTEGER PRIMARY KEY CHECK (n = 1), key BLOB NOT NULL) STRICT;

-- One answer. ranker: what put it in order, or `get` and `list` for texts read without a question.
CREATE TABLE impression(
  id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, agent TEXT NOT NULL, scope TEXT NOT NULL,
  ranker TEXT NOT NULL, query_tag BLOB
) STRICT;
CREATE INDEX impression_by_age ON impression(at_ms);

CREATE TABLE shown(
  impression INTEGER NOT NULL REFERENCES impression(id) ON DELETE CASCADE, record BLOB NOT NULL,
  rank INTEGER NOT NULL, features BLOB, outcome TEXT, PRIMARY KEY (impression, record)
) STRICT, WITHOUT ROWID;
CREATE INDEX shown_by_record ON shown(record);

-- When an agent last saw a memory: a row a pair, so that no number of repeated questions pushes out
-- what somebody was shown.
CREATE TABLE seen(
  agent TEXT NOT NULL, record BLOB NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (agent, record)
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_by_age ON seen(at_ms);
CREATE INDEX seen_by_record ON seen(record);
