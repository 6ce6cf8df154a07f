-- What a state cell's value is made of, so that reading it never scans its history: the records that
-- count and that no other one of the cell supersedes, and of each log the newest.
CREATE TABLE cell(
  grp INTEGER NOT NULL REFERENCES grp(n), key_tag BLOB NOT NULL, log INTEGER NOT NULL,
  seq INTEGER NOT NULL, n INTEGER NOT NULL REFERENCES record(n), superseded INTEGER NOT NULL,
  PRIMARY KEY (grp, key_tag, log, seq)
) STRICT, WITHOUT ROWID;

INSERT INTO cell SELECT grp, key_tag, log, seq, n, gone FROM (
  SELECT r.grp, r.key_tag, r.log, r.seq, r.n,
    EXISTS (SELECT 1 FROM supersede s CROSS JOIN record o ON o.n = s.src WHERE s.dst = r.id
      AND o.kind = 33 AND o.state = 'live' AND o.grp = r.grp AND o.key_tag = r.key_tag
      AND EXISTS (SELECT 1 FROM body ob WHERE ob.n = o.n)) AS gone,
    max(r.seq) OVER (PARTITION BY r.grp, r.key_tag, r.log) AS newest
  FROM record r WHERE r.kind = 33 AND r.key_tag IS NOT NULL AND r.state = 'live'
    AND EXISTS (SELECT 1 FROM body b WHERE b.n = r.n))
WHERE NOT gone OR seq = newest;
