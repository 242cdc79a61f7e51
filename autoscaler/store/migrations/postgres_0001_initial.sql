-- As in the SQLite schema; texts that are ordered by sort by code point, as there.
CREATE TABLE holder (
    id bigint PRIMARY KEY CHECK (id = 1),
    epoch bigint NOT NULL,
    name text NOT NULL,
    held_instances bigint NOT NULL
);
INSERT INTO holder (id, epoch, name, held_instances) VALUES (1, 0, '', 0);

CREATE TABLE jobs (
    id text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    state text COLLATE "C" NOT NULL,
    pool text COLLATE "C" NOT NULL,
    live bigint NOT NULL,
    first_seen_us bigint NOT NULL,
    ended_us bigint NOT NULL,
    body text NOT NULL
);
CREATE INDEX jobs_live ON jobs (first_seen_us, id) WHERE live = 1;
CREATE INDEX jobs_recent ON jobs (first_seen_us, id);
CREATE INDEX jobs_recent_of_pool ON jobs (pool, first_seen_us, id);
CREATE INDEX jobs_recent_in_state ON jobs (state, first_seen_us, id);
CREATE INDEX jobs_recent_of_pool_in_state ON jobs (pool, state, first_seen_us, id);

CREATE TABLE instances (
    id text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    state text COLLATE "C" NOT NULL,
    pool text COLLATE "C" NOT NULL,
    live bigint NOT NULL,
    created_us bigint NOT NULL,
    since_us bigint NOT NULL,
    body text NOT NULL
);
CREATE INDEX instances_live ON instances (created_us, id) WHERE live = 1;
CREATE INDEX instances_recent ON instances (created_us, id);
CREATE INDEX instances_recent_of_pool ON instances (pool, created_us, id);

CREATE TABLE instance_moves (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance text COLLATE "C" NOT NULL,
    body text NOT NULL
);
CREATE INDEX instance_moves_of_instance ON instance_moves (instance, seq);

CREATE TABLE ledger (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_us bigint NOT NULL,
    subject text COLLATE "C" NOT NULL,
    body text NOT NULL
);
CREATE INDEX ledger_of_subject ON ledger (subject, seq);
CREATE INDEX ledger_at ON ledger (at_us);

CREATE TABLE inbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    forge text NOT NULL,
    delivery_id text NOT NULL,
    received_us bigint NOT NULL,
    consumed bigint NOT NULL DEFAULT 0,
    body text NOT NULL,
    UNIQUE (forge, delivery_id)
);
CREATE INDEX inbox_waiting ON inbox (seq) WHERE consumed = 0;
CREATE INDEX inbox_received ON inbox (received_us);

CREATE TABLE samples (
    at_us bigint NOT NULL,
    pool text COLLATE "C" NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (at_us, pool)
);

CREATE TABLE controls (pool text PRIMARY KEY, control text NOT NULL);
CREATE TABLE settings (name text PRIMARY KEY, value text NOT NULL);
