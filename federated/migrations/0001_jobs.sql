-- jobs.db: the journal of jobs, and later of rounds. Ids are raw blobs, times Unix milliseconds,
-- values canonical JSON. docs/specs/jobs.md, Journal.

CREATE TABLE migration(
  number INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 BLOB NOT NULL, at_ms INTEGER NOT NULL
) STRICT;

-- epoch: of this coordinator, greater at each start. next_event: numbers of events skip at a start.
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- group_id: NULL for own devices. idem: the caller's idempotency key, one job a key and agent.
CREATE TABLE job(
  id BLOB PRIMARY KEY, spec BLOB NOT NULL, spec_hash BLOB NOT NULL, group_id BLOB,
  agent TEXT NOT NULL, nonce BLOB NOT NULL, idem TEXT, parent BLOB, title TEXT NOT NULL,
  phase TEXT NOT NULL, reason TEXT NOT NULL, submitted_ms INTEGER NOT NULL,
  deadline_ms INTEGER NOT NULL, finished_ms INTEGER NOT NULL, executions INTEGER NOT NULL,
  executions_max INTEGER, rows INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX job_by_idem ON job(agent, idem) WHERE idem IS NOT NULL;
CREATE INDEX job_by_age ON job(submitted_ms);

-- state: 0 pending, 1 ok, 2 missing, 3 disputed. agreed: owner keys, 32 bytes each.
CREATE TABLE row(
  job BLOB NOT NULL, k INTEGER NOT NULL, key BLOB NOT NULL, hash BLOB NOT NULL,
  source BLOB NOT NULL, pin BLOB, state INTEGER NOT NULL, level INTEGER NOT NULL,
  reason TEXT NOT NULL, value BLOB, agreed BLOB NOT NULL, PRIMARY KEY (job, k)
) STRICT, WITHOUT ROWID;

-- ks: the task's rows, 4 bytes each, big-endian. stage: 0 the map, 1 a reducing handler.
CREATE TABLE task(
  job BLOB NOT NULL, task INTEGER NOT NULL, ks BLOB NOT NULL, stage INTEGER NOT NULL,
  PRIMARY KEY (job, task)
) STRICT, WITHOUT ROWID;

-- An attempt that ended, and for effects one that was offered.
CREATE TABLE attempt(
  job BLOB NOT NULL, task INTEGER NOT NULL, attempt INTEGER NOT NULL, device BLOB NOT NULL,
  owner BLOB NOT NULL, state TEXT NOT NULL, at_ms INTEGER NOT NULL, took_ms INTEGER NOT NULL,
  reason TEXT NOT NULL, PRIMARY KEY (job, task, attempt)
) STRICT, WITHOUT ROWID;

-- An answer for a row, one a device: the first one counts.
CREATE TABLE answer(
  job BLOB NOT NULL, k INTEGER NOT NULL, device BLOB NOT NULL, owner BLOB NOT NULL,
  attempt INTEGER NOT NULL, overlapped INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (job, k, device)
) STRICT, WITHOUT ROWID;

-- Reduced rows of a finished job.
CREATE TABLE reduced(
  job BLOB NOT NULL, n INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (job, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE event(
  seq INTEGER PRIMARY KEY, job BLOB NOT NULL, at_ms INTEGER NOT NULL, kind TEXT NOT NULL,
  body BLOB NOT NULL
) STRICT;
CREATE INDEX event_by_job ON event(job, seq);

-- Answers of earlier jobs, by row hash. owners: 32 bytes each.
CREATE TABLE cache(
  hash BLOB PRIMARY KEY, handler TEXT NOT NULL, value BLOB NOT NULL, level INTEGER NOT NULL,
  owners BLOB NOT NULL, expires_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX cache_by_use ON cache(used_ms);

-- What peers are like: by owner for votes, by device for durations.
CREATE TABLE peer_stat(
  owner BLOB NOT NULL, device BLOB NOT NULL, handler TEXT NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (owner, device, handler)
) STRICT, WITHOUT ROWID;

-- Finished jobs, for the choice of batch sizes.
CREATE TABLE experience(
  id INTEGER PRIMARY KEY, class TEXT NOT NULL, handler TEXT NOT NULL, at_ms INTEGER NOT NULL,
  body BLOB NOT NULL
) STRICT;
CREATE INDEX experience_by_class ON experience(class, id);

-- The worker's side: results not acknowledged, and effects that began.
CREATE TABLE held(
  coordinator BLOB NOT NULL, job BLOB NOT NULL, task INTEGER NOT NULL, attempt INTEGER NOT NULL,
  epoch INTEGER NOT NULL, result BLOB NOT NULL, expires_ms INTEGER NOT NULL,
  PRIMARY KEY (coordinator, job, task, attempt)
) STRICT, WITHOUT ROWID;
CREATE TABLE effect(
  coordinator BLOB NOT NULL, token BLOB NOT NULL, state TEXT NOT NULL, result BLOB,
  expires_ms INTEGER NOT NULL, PRIMARY KEY (coordinator, token)
) STRICT, WITHOUT ROWID;
