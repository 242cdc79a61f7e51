-- Instants are integer microseconds since the epoch; bodies are JSON texts (see rows.py); columns exist for what queries filter on.
CREATE TABLE holder (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    name TEXT NOT NULL,
    held_instances INTEGER NOT NULL
);
INSERT INTO holder (id, epoch, name, held_instances) VALUES (1, 0, '', 0);

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    pool TEXT NOT NULL,
    live INTEGER NOT NULL,
    first_seen_us INTEGER NOT NULL,
    ended_us INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX jobs_live ON jobs (first_seen_us, id) WHERE live = 1;
CREATE INDEX jobs_recent ON jobs (first_seen_us, id);
CREATE INDEX jobs_recent_of_pool ON jobs (pool, first_seen_us, id);
CREATE INDEX jobs_recent_in_state ON jobs (state, first_seen_us, id);
CREATE INDEX jobs_recent_of_pool_in_state ON jobs (pool, state, first_seen_us, id);

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    pool TEXT NOT NULL,
    live INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    since_us INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX instances_live ON instances (created_us, id) WHERE live = 1;
CREATE INDEX instances_recent ON instances (created_us, id);
CREATE INDEX instances_recent_of_pool ON instances (pool, created_us, id);

CREATE TABLE instance_moves (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    instance TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX instance_moves_of_instance ON instance_moves (instance, seq);

CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at_us INTEGER NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX ledger_of_subject ON ledger (subject, seq);
CREATE INDEX ledger_at ON ledger (at_us);

CREATE TABLE inbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    forge TEXT NOT NULL,
    delivery_id TEXT NOT NULL,
    received_us INTEGER NOT NULL,
    consumed INTEGER NOT NULL DEFAULT 0,
    body TEXT NOT NULL,
    UNIQUE (forge, delivery_id)
);
CREATE INDEX inbox_waiting ON inbox (seq) WHERE consumed = 0;
CREATE INDEX inbox_received ON inbox (received_us);

CREATE TABLE samples (
    at_us INTEGER NOT NULL,
    pool TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (at_us, pool)
) WITHOUT ROWID;

CREATE TABLE controls (pool TEXT PRIMARY KEY, control TEXT NOT NULL);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
