-- Erasing an entry that was signed anew takes its original along: what a record supersedes is asked.
CREATE INDEX supersede_by_src ON supersede(src);
