-- The memory part: trust from evidence, conflicts and clusters, vectors, erasure. What 0001 drew in
-- advance and never filled is dropped and made anew where the design moved.

-- ---- trust -----------------------------------------------------------------------------------


-- ---- conflicts, duplicates, lineage ------------------------------------------------------------


-- ---- vectors -----------------------------------------------------------------------------------


-- ---- erasure and forgetting --------------------------------------------------------------------


-- ---- text flags --------------------------------------------------------------------------------

