-- What history taught of jobs, workflows, boots and predictions: small texts by key, replaced as more is learned.
CREATE TABLE learned (
    name TEXT PRIMARY KEY,
    at_us INTEGER NOT NULL,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX learned_at ON learned (at_us);
