-- The cache by rowid: entries come in thousands, their hashes in no order; with the values in the
-- tree of the hashes each dirtied a page of its own. What was kept so far is asked for again.

DROP TABLE cache;
CREATE TABLE cache(
  hash BLOB PRIMARY KEY, handler TEXT NOT NULL, value BLOB NOT NULL, level INTEGER NOT NULL,
  owners BLOB NOT NULL, expires_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX cache_by_use ON cache(used_ms);
DELETE FROM cache_quote;
