-- The status page lists the jobs that ended last.
CREATE INDEX jobs_ended ON jobs (ended_us, id) WHERE live = 0;
