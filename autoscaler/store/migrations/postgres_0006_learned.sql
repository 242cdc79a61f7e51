-- What history taught of jobs, workflows, boots and predictions: small texts by key, replaced as more is learned.
CREATE TABLE learned (
    name text COLLATE "C" PRIMARY KEY,
    at_us bigint NOT NULL,
    body text NOT NULL
);
CREATE INDEX learned_at ON learned (at_us);
