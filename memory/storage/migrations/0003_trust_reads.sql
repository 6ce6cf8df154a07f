-- Folding trust reads what it needs: a subject's rows, an owner's, our own side's, the time of the
-- last fold; and of each voter the newest evidence.
CREATE INDEX author_by_subject ON author(device, agent);
CREATE INDEX author_by_owner ON author(owner, class);
CREATE INDEX author_ours ON author(owner) WHERE class IN ('own', 'own_device');
CREATE INDEX author_by_fold ON author(at_ms);
DROP INDEX evidence_about;
CREATE INDEX evidence_about ON evidence(about, voter, hlc);
DROP INDEX evidence_memory;
CREATE INDEX evidence_memory ON evidence(memory, voter, hlc) WHERE memory IS NOT NULL;
