-- Jobs are found by what people write, "repo/run id" in small letters. Rows from before have it from their bodies; those
-- whose name is too long to be a key (see rows.py) are found by their ids alone.
ALTER TABLE jobs ADD COLUMN repo_run TEXT NOT NULL DEFAULT '';
UPDATE jobs SET repo_run = lower(json_extract(body, '$.repo') || '/' || json_extract(body, '$.run_id'))
WHERE length(json_extract(body, '$.repo') || '/' || json_extract(body, '$.run_id')) <= 200;
CREATE INDEX jobs_of_run ON jobs (repo_run, first_seen_us, id);
