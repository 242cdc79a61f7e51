-- Jobs are found by what people write, "repo/run id" in small letters. Rows from before have it from their bodies; those
-- whose name is too long to be a key (see rows.py), or holds what JSON escapes, are found by their ids alone. No JSON
-- function: it fails for a body with a lone surrogate anywhere.
ALTER TABLE jobs ADD COLUMN repo_run text COLLATE "C" NOT NULL DEFAULT '';
UPDATE jobs SET repo_run = lower(substring(body from '"repo":"([^"\\]*)"') || '/' || substring(body from '"run_id":"([^"\\]*)"'))
WHERE length(substring(body from '"repo":"([^"\\]*)"') || '/' || substring(body from '"run_id":"([^"\\]*)"')) <= 200;
CREATE INDEX jobs_of_run ON jobs (repo_run, first_seen_us, id);
