-- What our own machines taught us of each capacity pool: it outlives restarts, and fades.
CREATE TABLE capacity_evidence (
    capacity_pool text COLLATE "C" PRIMARY KEY,
    at_us bigint NOT NULL,
    body text NOT NULL
);
CREATE INDEX capacity_evidence_at ON capacity_evidence (at_us);
