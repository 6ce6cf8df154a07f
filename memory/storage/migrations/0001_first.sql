-- The whole first schema of covey.db: replication's records, the memory derived from them, and the
-- daemon's agents, devices and receipts. Ids and keys are raw 32-byte blobs, times Unix milliseconds,
-- hlc = milliseconds << 16 | counter. docs/specs/memory.md explains every table.

CREATE TABLE migration(
  number INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 BLOB NOT NULL, at_ms INTEGER NOT NULL
) STRICT;

-- ---- replication ------------------------------------------------------------------------------

CREATE TABLE grp(
  n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name TEXT NOT NULL DEFAULT '',
  home INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE secret(
  grp BLOB NOT NULL, purpose TEXT NOT NULL, public BLOB NOT NULL, private BLOB NOT NULL,
  PRIMARY KEY (grp, purpose, public)
) STRICT, WITHOUT ROWID;

CREATE TABLE epoch(
  grp BLOB NOT NULL, id BLOB NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (grp, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE log(
  n INTEGER PRIMARY KEY, grp INTEGER NOT NULL REFERENCES grp(n), author BLOB NOT NULL,
  incarnation INTEGER NOT NULL, lane INTEGER NOT NULL,
  contiguous INTEGER NOT NULL DEFAULT 0, max_seq INTEGER NOT NULL DEFAULT 0,
  head_id BLOB NOT NULL DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000',
  head_hlc INTEGER NOT NULL DEFAULT 0, frozen INTEGER, floor INTEGER NOT NULL DEFAULT 0,
  UNIQUE (grp, author, incarnation, lane)
) STRICT;

-- Integer row ids: 1,216 bytes a record and 13-29 us; 32-byte ids as keys 1,454 bytes and 48-60 us.
CREATE TABLE record(
  n INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, grp INTEGER NOT NULL REFERENCES grp(n),
  log INTEGER NOT NULL REFERENCES log(n), seq INTEGER NOT NULL, hlc INTEGER NOT NULL,
  kind INTEGER NOT NULL, key_tag BLOB, header BLOB NOT NULL, sig BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('live', 'sealed', 'void', 'stub')),
  UNIQUE (log, seq)
) STRICT;
CREATE INDEX record_by_hlc ON record(grp, hlc) WHERE state IN ('live', 'sealed', 'stub');
CREATE INDEX record_by_cell ON record(grp, key_tag) WHERE key_tag IS NOT NULL;

-- opened: whether the plain body was seen here, so that a revived record knows what it was.
CREATE TABLE body(
  n INTEGER PRIMARY KEY REFERENCES record(n), epoch BLOB NOT NULL, opened INTEGER NOT NULL,
  ct BLOB NOT NULL
) STRICT;
-- Wraps and salts apart from the bodies: deleting these rows shreds the body.
CREATE TABLE body_key(
  n INTEGER PRIMARY KEY REFERENCES record(n), salt BLOB NOT NULL, wrap BLOB NOT NULL
) STRICT;
CREATE TABLE control(
  n INTEGER PRIMARY KEY REFERENCES record(n), salt BLOB NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE INDEX body_waiting ON body(epoch) WHERE opened = 0;

CREATE TABLE supersede(dst BLOB NOT NULL, src INTEGER NOT NULL REFERENCES record(n),
  PRIMARY KEY (dst, src)) STRICT, WITHOUT ROWID;
CREATE TABLE fork(log INTEGER NOT NULL REFERENCES log(n), seq INTEGER NOT NULL, a BLOB NOT NULL,
  b BLOB NOT NULL, PRIMARY KEY (log, seq, a, b)) STRICT, WITHOUT ROWID;
CREATE TABLE erased(id BLOB PRIMARY KEY, by BLOB NOT NULL, hlc INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hold(
  id BLOB PRIMARY KEY, grp BLOB NOT NULL, reason TEXT NOT NULL, due_ms INTEGER NOT NULL,
  wire BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE ack(erase BLOB NOT NULL, member BLOB NOT NULL, state TEXT NOT NULL,
  PRIMARY KEY (erase, member)) STRICT, WITHOUT ROWID;
CREATE TABLE peer(grp BLOB NOT NULL, peer BLOB NOT NULL, at_ms INTEGER NOT NULL, root BLOB,
  PRIMARY KEY (grp, peer)) STRICT, WITHOUT ROWID;

-- ---- daemon -----------------------------------------------------------------------------------

-- published: the name is the device's own word (a profile record); hlc says which word is newest.
CREATE TABLE device(
  key BLOB PRIMARY KEY, name TEXT NOT NULL, published INTEGER NOT NULL, verified_ms INTEGER,
  hlc INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE agent(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, client TEXT NOT NULL, token_hash BLOB NOT NULL UNIQUE,
  scopes TEXT NOT NULL, created_ms INTEGER NOT NULL, revoked_ms INTEGER, last_seen_ms INTEGER
) STRICT;
CREATE TABLE receipt(key BLOB PRIMARY KEY, result BLOB NOT NULL, at_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX receipt_by_age ON receipt(at_ms);

-- ---- memory -----------------------------------------------------------------------------------

-- class: own, own_device, invited, other; s, f: evidence for and against; state: '' or banned.
CREATE TABLE author(
  id INTEGER PRIMARY KEY, grp INTEGER NOT NULL REFERENCES grp(n), device BLOB NOT NULL,
  agent TEXT NOT NULL, owner BLOB NOT NULL, class TEXT NOT NULL, s REAL NOT NULL DEFAULT 0,
  f REAL NOT NULL DEFAULT 0, at_ms INTEGER NOT NULL DEFAULT 0, trust REAL NOT NULL,
  state TEXT NOT NULL DEFAULT '', UNIQUE (grp, device, agent)
) STRICT;
CREATE TABLE domain(
  owner BLOB PRIMARY KEY, s REAL NOT NULL, f REAL NOT NULL, at_ms INTEGER NOT NULL,
  trust REAL NOT NULL, flow REAL NOT NULL, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- generation: raised by every change that recall could show; the counts size the query's terms.
CREATE TABLE scope(
  id INTEGER PRIMARY KEY, grp INTEGER NOT NULL REFERENCES grp(n), name TEXT NOT NULL,
  generation INTEGER NOT NULL DEFAULT 0, main_chunks INTEGER NOT NULL DEFAULT 0,
  low_chunks INTEGER NOT NULL DEFAULT 0, UNIQUE (grp, name)
) STRICT;

-- id is record.n. tier: 0 main, 1 low, 2 none: the index the memory is in. tags, source: JSON.
CREATE TABLE memory(
  id INTEGER PRIMARY KEY REFERENCES record(n), author INTEGER NOT NULL REFERENCES author(id),
  scope INTEGER NOT NULL REFERENCES scope(id), kind TEXT NOT NULL, role TEXT NOT NULL,
  speaker TEXT, title TEXT NOT NULL, thread BLOB, pos INTEGER NOT NULL, hlc INTEGER NOT NULL,
  at_ms INTEGER NOT NULL, valid_from INTEGER, valid_to INTEGER, claim INTEGER REFERENCES claim(id),
  claim_value TEXT, tags TEXT, source TEXT, status TEXT NOT NULL, tier INTEGER NOT NULL,
  flags INTEGER NOT NULL DEFAULT 0, origin_trust REAL NOT NULL, eff_trust REAL NOT NULL,
  cluster INTEGER, content_hash BLOB NOT NULL, expires_ms INTEGER, tokens INTEGER NOT NULL,
  chunks INTEGER NOT NULL
) STRICT;
CREATE INDEX memory_by_hlc ON memory(hlc);
CREATE INDEX memory_by_content ON memory(content_hash);
CREATE INDEX memory_by_author ON memory(author);
CREATE INDEX memory_by_thread ON memory(thread, pos) WHERE thread IS NOT NULL;
CREATE INDEX memory_by_expiry ON memory(expires_ms) WHERE expires_ms IS NOT NULL;

-- The only plain copy of a memory's text: the pieces in order are the text.
CREATE TABLE chunk(
  id INTEGER PRIMARY KEY, memory INTEGER NOT NULL REFERENCES memory(id), i INTEGER NOT NULL,
  scope_tok TEXT NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (memory, i)
) STRICT;

CREATE VIEW main_chunk AS SELECT c.id, c.scope_tok, c.title, c.text
  FROM chunk c JOIN memory m ON m.id = c.memory WHERE m.tier = 0;
CREATE VIEW low_chunk AS SELECT c.id, c.scope_tok, c.title, c.text
  FROM chunk c JOIN memory m ON m.id = c.memory WHERE m.tier = 1;
-- flags bit 0: in the trigram index, for texts of scripts without spaces (a later part fills it).
CREATE VIEW cjk_chunk AS SELECT c.id, c.scope_tok, c.title, c.text
  FROM chunk c JOIN memory m ON m.id = c.memory WHERE m.flags & 1 = 1;

-- An index for each trust tier: floods of untrusted text fill their own pool, never the main one.
CREATE VIRTUAL TABLE main_fts USING fts5(scope_tok, title, text, content='main_chunk',
  content_rowid='id', tokenize='porter unicode61 remove_diacritics 2');
CREATE VIRTUAL TABLE low_fts USING fts5(scope_tok, title, text, content='low_chunk',
  content_rowid='id', tokenize='porter unicode61 remove_diacritics 2');
CREATE VIRTUAL TABLE cjk_fts USING fts5(scope_tok, title, text, content='cjk_chunk',
  content_rowid='id', tokenize='trigram');
CREATE VIRTUAL TABLE main_vocab USING fts5vocab('main_fts', 'row');
CREATE VIRTUAL TABLE low_vocab USING fts5vocab('low_fts', 'row');
-- With either secure-delete alone (this one, the pragma) a deleted word stays in the file.
INSERT INTO main_fts(main_fts, rank) VALUES ('secure-delete', 1);
INSERT INTO low_fts(low_fts, rank) VALUES ('secure-delete', 1);
INSERT INTO cjk_fts(cjk_fts, rank) VALUES ('secure-delete', 1);

-- A key means one note of one author in one scope: a repeated call names the same scope.
CREATE TABLE idem(
  author INTEGER NOT NULL REFERENCES author(id), scope INTEGER NOT NULL REFERENCES scope(id),
  key TEXT NOT NULL, content_hash BLOB NOT NULL, memory INTEGER NOT NULL REFERENCES memory(id),
  PRIMARY KEY (author, scope, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE claim(
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL REFERENCES scope(id), subject TEXT NOT NULL,
  attribute TEXT NOT NULL, UNIQUE (scope, subject, attribute)
) STRICT;
-- src, dst are record ids: either may still be on its way here. n is the link's own record.
CREATE TABLE link(
  n INTEGER PRIMARY KEY REFERENCES record(n), src BLOB NOT NULL, dst BLOB NOT NULL,
  type TEXT NOT NULL, author INTEGER NOT NULL REFERENCES author(id), hlc INTEGER NOT NULL,
  note TEXT NOT NULL
) STRICT;
CREATE INDEX link_by_dst ON link(dst);
CREATE INDEX link_by_src ON link(src);
CREATE TABLE forgetting(
  target BLOB NOT NULL, n INTEGER NOT NULL REFERENCES record(n),
  author INTEGER NOT NULL REFERENCES author(id), hlc INTEGER NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY (target, n)
) STRICT, WITHOUT ROWID;
CREATE TABLE parent(
  memory INTEGER NOT NULL REFERENCES memory(id), parent_id BLOB NOT NULL, PRIMARY KEY (memory, parent_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX parent_by_id ON parent(parent_id);
-- Bodies this version keeps without showing them: kinds of a later part, or not understood here.
CREATE TABLE kept(
  n INTEGER PRIMARY KEY REFERENCES record(n), tag INTEGER NOT NULL,
  why TEXT NOT NULL CHECK (why IN ('later', 'unprojected')), plain BLOB NOT NULL
) STRICT;

-- ---- derived by later parts -------------------------------------------------------------------

CREATE TABLE vec(
  chunk INTEGER NOT NULL REFERENCES chunk(id), model TEXT NOT NULL, scale REAL NOT NULL,
  code BLOB NOT NULL, PRIMARY KEY (chunk, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE sig(memory INTEGER PRIMARY KEY REFERENCES memory(id), minhash BLOB NOT NULL) STRICT;
CREATE TABLE evidence(
  id INTEGER PRIMARY KEY, owner BLOB NOT NULL, author INTEGER REFERENCES author(id),
  rec INTEGER REFERENCES record(n), kind TEXT NOT NULL, p REAL NOT NULL, n REAL NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE endorse(
  by BLOB NOT NULL, subject BLOB NOT NULL, level INTEGER NOT NULL, until_ms INTEGER,
  PRIMARY KEY (by, subject)
) STRICT, WITHOUT ROWID;
CREATE TABLE entity(id INTEGER PRIMARY KEY, name TEXT NOT NULL, class TEXT NOT NULL, UNIQUE (name, class)) STRICT;
CREATE TABLE mention(entity INTEGER NOT NULL REFERENCES entity(id), memory INTEGER NOT NULL REFERENCES memory(id),
  PRIMARY KEY (entity, memory)) STRICT, WITHOUT ROWID;
CREATE TABLE edge(a INTEGER NOT NULL, b INTEGER NOT NULL, weight REAL NOT NULL, PRIMARY KEY (a, b)) STRICT, WITHOUT ROWID;
CREATE TABLE community(entity INTEGER NOT NULL, level INTEGER NOT NULL, id INTEGER NOT NULL,
  PRIMARY KEY (entity, level)) STRICT, WITHOUT ROWID;
CREATE TABLE term(term TEXT PRIMARY KEY, df INTEGER NOT NULL) STRICT, WITHOUT ROWID;
-- Version of each derived table: a mismatch rebuilds it.
CREATE TABLE derived(name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO derived VALUES ('fts', 1), ('trust', 1);
