-- The memory part: trust from evidence, conflicts and clusters, vectors, erasure. What 0001 drew in
-- advance and never filled is dropped and made anew where the design moved.

-- ---- recall ----------------------------------------------------------------------------------

-- Characters of the text, and whether it ends with a question mark: ranking asks for both.
ALTER TABLE memory ADD COLUMN chars INTEGER NOT NULL DEFAULT 0;
ALTER TABLE memory ADD COLUMN asks INTEGER NOT NULL DEFAULT 0;
UPDATE memory SET
  chars = (SELECT coalesce(sum(length(text)), 0) FROM chunk WHERE memory = memory.id),
  asks = coalesce((SELECT rtrim(text, char(9, 10, 32)) LIKE '%?' FROM chunk
    WHERE memory = memory.id ORDER BY i DESC LIMIT 1), 0);

-- A thread in its order; who speaks in a scope; whether an author wrote in it.
DROP INDEX memory_by_thread;
CREATE INDEX memory_by_thread ON memory(thread, pos, hlc) WHERE thread IS NOT NULL;
CREATE INDEX memory_by_speaker ON memory(scope, speaker COLLATE NOCASE)
  WHERE speaker IS NOT NULL AND eff_trust >= 0.7;
DROP INDEX memory_by_author;
CREATE INDEX memory_by_author ON memory(author, scope);
CREATE INDEX author_by_agent ON author(agent COLLATE NOCASE);

-- ---- trust -----------------------------------------------------------------------------------

DROP TABLE evidence;
DROP TABLE endorse;
DROP TABLE domain;

-- What was seen of an author, in its own words or in others' signed ones. Weights are not kept: they
-- follow from the kind and from how far the voter is trusted today. about, memory: NULL until the
-- target of a signed verdict is here. voter, rec: who signed it, and where. proof: it brought the
-- hash of a test run or document. persons: said in the person's name. seen: '' nobody here knows, 'ask' to be looked up, 'no', 'yes':
-- whether the voter, an agent of this device, had been shown the target before it confirmed it.
CREATE TABLE evidence(
  id INTEGER PRIMARY KEY, about INTEGER REFERENCES author(id), target BLOB, memory INTEGER,
  kind TEXT NOT NULL, by BLOB, voter INTEGER REFERENCES author(id), rec INTEGER REFERENCES record(n),
  proof INTEGER NOT NULL DEFAULT 0, persons INTEGER NOT NULL DEFAULT 0,
  seen TEXT NOT NULL DEFAULT '', hlc INTEGER NOT NULL, at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX evidence_about ON evidence(about);
CREATE INDEX evidence_memory ON evidence(memory) WHERE memory IS NOT NULL;
CREATE INDEX evidence_target ON evidence(target) WHERE target IS NOT NULL;
CREATE INDEX evidence_voter ON evidence(voter) WHERE voter IS NOT NULL;
CREATE UNIQUE INDEX evidence_rec ON evidence(rec) WHERE rec IS NOT NULL;

-- Signed endorsements of owners by others; of each voter's owner the newest that counts is in force.
CREATE TABLE endorse(
  rec INTEGER PRIMARY KEY REFERENCES record(n), voter INTEGER NOT NULL REFERENCES author(id),
  subject BLOB NOT NULL, level INTEGER NOT NULL, until_ms INTEGER, hlc INTEGER NOT NULL
) STRICT;
CREATE INDEX endorse_subject ON endorse(subject);
CREATE INDEX endorse_voter ON endorse(voter);

-- A foreign owner as a whole: no agent of its is trusted more than this.
CREATE TABLE domain(
  owner BLOB PRIMARY KEY, s REAL NOT NULL, f REAL NOT NULL, trust REAL NOT NULL, flow REAL NOT NULL,
  state TEXT NOT NULL, at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Work that a transaction leaves for the next ones, so that none is long: authors to fold anew,
-- authors whose memories (after the one named) take over the new trust, and single memories.
CREATE TABLE refold(author INTEGER PRIMARY KEY REFERENCES author(id)) STRICT;
CREATE TABLE retrust_author(author INTEGER PRIMARY KEY REFERENCES author(id), after INTEGER NOT NULL)
  STRICT;
CREATE TABLE retrust(memory INTEGER PRIMARY KEY) STRICT;

-- Rolled back on this machine: what an author (agent NULL: every agent of the device) wrote since a
-- time. cursor: records up to this one are done; state says which way it goes.
CREATE TABLE rollback(
  id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, device BLOB NOT NULL, agent TEXT,
  grp INTEGER REFERENCES grp(n), since_ms INTEGER NOT NULL, at_ms INTEGER NOT NULL,
  cursor INTEGER NOT NULL DEFAULT 0,
  state TEXT NOT NULL CHECK (state IN ('planned', 'hiding', 'done', 'undoing', 'undone'))
) STRICT;
-- Records that do not count here while their rollback stands; was: the memory's status before.
CREATE TABLE muted(
  n INTEGER PRIMARY KEY REFERENCES record(n), rollback INTEGER NOT NULL REFERENCES rollback(id),
  was TEXT
) STRICT;
CREATE INDEX muted_by ON muted(rollback, n);

-- backed: the person, or flow >= 2, vouches for it. vouched: what that raises E to, at least.
ALTER TABLE memory ADD COLUMN backed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE memory ADD COLUMN confirmations INTEGER NOT NULL DEFAULT 0;
ALTER TABLE memory ADD COLUMN vouched REAL NOT NULL DEFAULT 0;
-- denied: independent owners refute it, flow >= 2 and more than confirm it, against nobody's word here.
ALTER TABLE memory ADD COLUMN denied INTEGER NOT NULL DEFAULT 0;
-- From when a fall of trust is measured: .3 within a day is an alarm.
ALTER TABLE author ADD COLUMN day_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE author ADD COLUMN day_trust REAL NOT NULL DEFAULT 0;


-- ---- conflicts, duplicates, lineage ------------------------------------------------------------

-- essence: 64 bits of what the text says (memory/dedupe.py); equal in one scope: one cluster, named
-- by its smallest row. value_key: 64 bits of the claim's value, by which equal values are known.
ALTER TABLE memory ADD COLUMN essence INTEGER;
ALTER TABLE memory ADD COLUMN value_key INTEGER;
CREATE INDEX memory_by_essence ON memory(essence) WHERE essence IS NOT NULL;
CREATE INDEX memory_by_claim ON memory(claim, hlc) WHERE claim IS NOT NULL;
CREATE INDEX memory_standing ON memory(claim) WHERE claim IS NOT NULL AND status = 'active';

-- Which memory validly replaces which: what a status is folded from, and what recall follows. By a
-- signed link of the replaced one's own owner or of the person here, or of the newer one's author once
-- that is backed (by the person here, or by two independent owners), or by a newer value of the same
-- claim of the same owner. Only the person replaces what the person said; passed-on text (role tool,
-- web) replaces by its claim only passed-on text. Nothing older replaces, so there are no cycles.
CREATE VIEW replacement AS
  SELECT m.id AS dst, sm.id AS src, sm.hlc AS hlc, max(l.hlc, sm.hlc) AS since_hlc
  FROM memory m JOIN record r ON r.n = m.id JOIN author a ON a.id = m.author
  JOIN link l ON l.dst = r.id AND l.type = 'supersedes' AND l.src <> l.dst
  JOIN record lr ON lr.n = l.n AND lr.state = 'live' JOIN author la ON la.id = l.author
  JOIN record sr ON sr.id = l.src AND sr.state = 'live'
  JOIN memory sm ON sm.id = sr.n AND sm.status NOT IN ('forgotten', 'hidden', 'quarantined')
  JOIN author sa ON sa.id = sm.author
  WHERE NOT EXISTS (SELECT 1 FROM muted x WHERE x.n = l.n) AND sm.hlc >= m.hlc
    AND ((la.class = 'own' AND la.agent = '') OR (la.owner = a.owner
    AND (la.agent = '' OR a.agent <> '' OR m.role IN ('tool', 'web'))) OR (la.owner = sa.owner
    AND sm.backed = 1 AND (a.agent <> '' OR a.class NOT IN ('own', 'own_device'))))
UNION ALL
  SELECT m.id, sm.id, sm.hlc, sm.hlc
  FROM memory m JOIN record r ON r.n = m.id JOIN author a ON a.id = m.author
  JOIN memory sm ON sm.claim = m.claim AND sm.hlc >= m.hlc AND sm.value_key <> m.value_key
    AND sm.status NOT IN ('forgotten', 'hidden', 'quarantined')
  JOIN record sr ON sr.n = sm.id AND sr.state = 'live'
  JOIN author sa ON sa.id = sm.author AND sa.owner = a.owner
  WHERE (sm.hlc > m.hlc OR sr.id > r.id)
    AND CASE WHEN sm.role IN ('tool', 'web') THEN 0 WHEN sa.agent = '' THEN 2 ELSE 1 END
     >= CASE WHEN m.role IN ('tool', 'web') THEN 0 WHEN a.agent = '' THEN 2 ELSE 1 END;

-- Memories (rows a < b) that contradict each other while neither has won. claim: of which key, NULL where a
-- signed link says so.
CREATE TABLE dispute(
  a INTEGER NOT NULL, b INTEGER NOT NULL, since_ms INTEGER NOT NULL, claim INTEGER,
  PRIMARY KEY (a, b)
) STRICT, WITHOUT ROWID;
CREATE INDEX dispute_b ON dispute(b);
CREATE INDEX dispute_claim ON dispute(claim) WHERE claim IS NOT NULL;

-- Statements guessed from a text (memory/claims.py), as 64-bit numbers of subject and value.
CREATE TABLE guess(
  memory INTEGER NOT NULL REFERENCES memory(id), key INTEGER NOT NULL, value INTEGER NOT NULL,
  PRIMARY KEY (memory, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX guess_key ON guess(key);

-- Memories that the first version wrote: what is derived from their texts is still to be filled in
-- (memory/backfill.py). Confirming links become evidence as if they came today.
CREATE TABLE unread(memory INTEGER PRIMARY KEY) STRICT;
INSERT INTO unread SELECT id FROM memory;
INSERT INTO evidence(about, target, memory, kind, voter, rec, seen, hlc, at_ms)
  SELECT m.author, l.dst, m.id, 'confirms', l.author, l.n,
    CASE WHEN v.class = 'own' AND v.agent <> '' THEN 'ask' ELSE '' END, l.hlc, l.hlc >> 16
  FROM link l JOIN author v ON v.id = l.author LEFT JOIN record r ON r.id = l.dst
  LEFT JOIN memory m ON m.id = r.n WHERE l.type = 'confirms';
INSERT INTO refold SELECT DISTINCT about FROM evidence WHERE about IS NOT NULL;
INSERT INTO retrust SELECT DISTINCT memory FROM evidence WHERE memory IS NOT NULL;

-- An erased memory leaves no relation; the others of its cluster are named anew.
CREATE TRIGGER memory_unrelated AFTER DELETE ON memory BEGIN
  DELETE FROM unread WHERE memory = OLD.id;
  DELETE FROM guess WHERE memory = OLD.id;
  DELETE FROM dispute WHERE a = OLD.id OR b = OLD.id;
  UPDATE memory SET cluster = (SELECT CASE WHEN count(*) > 1 THEN min(x.id) END FROM memory x
      WHERE x.essence = OLD.essence AND x.scope = OLD.scope AND x.status = 'active' AND x.tier < 2)
    WHERE OLD.cluster IS NOT NULL AND essence = OLD.essence AND scope = OLD.scope
      AND status = 'active' AND tier < 2;
END;


-- ---- vectors -----------------------------------------------------------------------------------

-- Models that have rows in `vec`: whether another one's are left is asked often, and `vec` is large.
CREATE TABLE vec_model(model TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;


-- ---- erasure and forgetting --------------------------------------------------------------------

-- Erased in the tables, and still to be taken out of the write-ahead log, backups' keys and the
-- behaviour log.
CREATE TABLE erasing(id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
-- Forgotten on this machine by a rule, not by a person: why, when, and the status before.
CREATE TABLE faded(
  memory INTEGER PRIMARY KEY REFERENCES memory(id),
  why TEXT NOT NULL CHECK (why IN ('unverified', 'crowded')), at_ms INTEGER NOT NULL
) STRICT;
-- How often it was in an answer, and when last: what forgetting weighs, and nothing else.
ALTER TABLE memory ADD COLUMN uses INTEGER NOT NULL DEFAULT 0;
ALTER TABLE memory ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0;

-- ---- text flags --------------------------------------------------------------------------------


-- ---- generations ---------------------------------------------------------------------------

-- Answers are kept while the generations of their scopes stand, so whatever an answer could show
-- raises them, whoever writes it. (A new memory's chunks do it when they enter their index.)
CREATE TRIGGER memory_shown AFTER UPDATE OF status, tier, flags, eff_trust, backed, confirmations,
  cluster, title, valid_to, expires_ms ON memory
  BEGIN UPDATE scope SET generation = generation + 1 WHERE id = NEW.scope; END;
CREATE TRIGGER memory_gone AFTER DELETE ON memory
  BEGIN UPDATE scope SET generation = generation + 1 WHERE id = OLD.scope; END;
CREATE TRIGGER link_said AFTER INSERT ON link
  BEGIN UPDATE scope SET generation = generation + 1 WHERE id IN (SELECT m.scope FROM record r
    JOIN memory m ON m.id = r.n WHERE r.id IN (NEW.src, NEW.dst)); END;
CREATE TRIGGER author_changed AFTER UPDATE OF owner, class, trust, state ON author
  BEGIN UPDATE scope SET generation = generation + 1 WHERE grp = NEW.grp; END;
CREATE TRIGGER device_named AFTER INSERT ON device
  BEGIN UPDATE scope SET generation = generation + 1; END;
CREATE TRIGGER device_renamed AFTER UPDATE OF name ON device
  BEGIN UPDATE scope SET generation = generation + 1; END;
CREATE TRIGGER device_unnamed AFTER DELETE ON device
  BEGIN UPDATE scope SET generation = generation + 1; END;
CREATE TRIGGER group_renamed AFTER UPDATE OF name, home ON grp
  BEGIN UPDATE scope SET generation = generation + 1 WHERE grp = NEW.n; END;
CREATE TRIGGER vector_made AFTER INSERT ON vec
  BEGIN UPDATE scope SET generation = generation + 1 WHERE id = (SELECT m.scope FROM chunk c
    JOIN memory m ON m.id = c.memory WHERE c.id = NEW.chunk); END;
CREATE TRIGGER dispute_begun AFTER INSERT ON dispute
  BEGIN UPDATE scope SET generation = generation + 1 WHERE id IN
    (SELECT scope FROM memory WHERE id IN (NEW.a, NEW.b)); END;
CREATE TRIGGER dispute_ended AFTER DELETE ON dispute
  BEGIN UPDATE scope SET generation = generation + 1 WHERE id IN
    (SELECT scope FROM memory WHERE id IN (OLD.a, OLD.b)); END;
