-- What our own machines taught us of each capacity pool: it outlives restarts, and fades.
CREATE TABLE capacity_evidence (
    capacity_pool TEXT PRIMARY KEY,
    at_us INTEGER NOT NULL,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX capacity_evidence_at ON capacity_evidence (at_us);
