-- Every query of the store, for SQLite and PostgreSQL alike. `queries.py` loads this file.
--
-- Each query opens with "-- name: <name>" and one or more lines that describe it. Parameters are $1, $2, ... Instants are
-- integer microseconds since the epoch, bodies JSON texts, truth 0 or 1. Where one engine needs its own text, a second
-- query of the same name is marked for it: "-- name: <name> [postgres]"; a query with only a marked text exists for that
-- engine alone (bulk forms, whose parameters are arrays).

-- ------------------------------------------------------------------------- lease

-- name: lease_epoch
-- The epoch of the current lease; inside a write it is compared with ours. SQLite: the write lock is held already.
SELECT epoch FROM holder WHERE id = 1

-- name: lease_epoch [postgres]
-- The epoch of the current lease, locked so that a taker waits until this transaction ends.
SELECT epoch FROM holder WHERE id = 1 FOR SHARE

-- name: peek_epoch
-- The epoch of the current lease, without a lock.
SELECT epoch FROM holder WHERE id = 1

-- name: take_lease
-- A new holder ($1: its name) and the epoch that fences all earlier ones off.
UPDATE holder SET epoch = epoch + 1, name = $1 WHERE id = 1 RETURNING epoch

-- name: note_instances
-- The store has held an instance: it is not new any more, whatever is pruned later.
UPDATE holder SET held_instances = 1 WHERE id = 1 AND held_instances = 0

-- name: held_instances
-- Whether the store ever held an instance.
SELECT held_instances FROM holder WHERE id = 1

-- name: try_lock [postgres]
-- The advisory lock of this schema's store, held as long as its connection lives.
SELECT pg_try_advisory_lock(1635087471, hashtext(current_schema()))

-- name: lock_migrations [postgres]
-- One migrating daemon at a time, until the transaction ends.
SELECT pg_advisory_xact_lock(1635087472, hashtext(current_schema()))

-- ------------------------------------------------------------------------- jobs

-- name: insert_job
-- A job's first version; no row comes back when the id is taken.
INSERT INTO jobs (id, version, state, pool, live, first_seen_us, ended_us, repo_run, body)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: insert_job [postgres]
-- Many first versions; the ids that were free come back.
INSERT INTO jobs (id, version, state, pool, live, first_seen_us, ended_us, repo_run, body)
SELECT * FROM unnest(
    $1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[]
)
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: update_job
-- A job's next version, if the row still is at version $10; no row comes back otherwise.
UPDATE jobs
SET version = $2, state = $3, pool = $4, live = $5, first_seen_us = $6, ended_us = $7, repo_run = $8, body = $9
WHERE id = $1 AND version = $10
RETURNING id

-- name: update_job [postgres]
-- Many next versions; the ids of rows that were at the expected version come back.
UPDATE jobs AS old
SET version = new.version, state = new.state, pool = new.pool, live = new.live, first_seen_us = new.first_seen_us,
    ended_us = new.ended_us, repo_run = new.repo_run, body = new.body
FROM unnest(
    $1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[],
    $10::bigint[]
) AS new (id, version, state, pool, live, first_seen_us, ended_us, repo_run, body, expected)
WHERE old.id = new.id AND old.version = new.expected
RETURNING old.id

-- name: live_jobs
-- Jobs a starting daemon works on, oldest first.
SELECT body FROM jobs WHERE live = 1 ORDER BY first_seen_us, id

-- name: job
-- One job by id.
SELECT body FROM jobs WHERE id = $1

-- name: jobs_by_ids [postgres]
-- The jobs of these ids, in no order.
SELECT body FROM jobs WHERE id = ANY($1::text[])

-- name: jobs_of_run
-- At most $1 jobs of the run $2 ("repo/run id", in small letters) at any forge, oldest first.
SELECT body FROM jobs WHERE repo_run = $2 ORDER BY first_seen_us, id LIMIT $1

-- name: recent_jobs
-- Newest jobs first.
SELECT body FROM jobs ORDER BY first_seen_us DESC, id DESC LIMIT $1

-- name: recent_jobs_of_pool
-- Newest jobs of pool $2 first.
SELECT body FROM jobs WHERE pool = $2 ORDER BY first_seen_us DESC, id DESC LIMIT $1

-- name: recent_jobs_in_state
-- Newest jobs in state $2 first.
SELECT body FROM jobs WHERE state = $2 ORDER BY first_seen_us DESC, id DESC LIMIT $1

-- name: recent_jobs_of_pool_in_state
-- Newest jobs of pool $2 in state $3 first.
SELECT body FROM jobs WHERE pool = $2 AND state = $3 ORDER BY first_seen_us DESC, id DESC LIMIT $1

-- name: ended_jobs
-- The jobs that ended last, newest end first.
SELECT body FROM jobs WHERE live = 0 ORDER BY ended_us DESC, id DESC LIMIT $1

-- name: prune_jobs
-- At most $2 jobs that ended before $1. A job ends after it was first seen, so the scan stops at that age.
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE live = 0 AND first_seen_us < $1 AND ended_us < $1 ORDER BY first_seen_us, id LIMIT $2
)
RETURNING id

-- ------------------------------------------------------------------------- instances

-- name: insert_instance
-- An instance's first version; no row comes back when the id is taken.
INSERT INTO instances (id, version, state, pool, live, created_us, since_us, body)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: insert_instance [postgres]
-- Many first versions; the ids that were free come back.
INSERT INTO instances (id, version, state, pool, live, created_us, since_us, body)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[])
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: update_instance
-- An instance's next version, if the row still is at version $9; no row comes back otherwise.
UPDATE instances
SET version = $2, state = $3, pool = $4, live = $5, created_us = $6, since_us = $7, body = $8
WHERE id = $1 AND version = $9
RETURNING id

-- name: update_instance [postgres]
-- Many next versions; the ids of rows that were at the expected version come back.
UPDATE instances AS old
SET version = new.version, state = new.state, pool = new.pool, live = new.live, created_us = new.created_us,
    since_us = new.since_us, body = new.body
FROM unnest(
    $1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::bigint[]
) AS new (id, version, state, pool, live, created_us, since_us, body, expected)
WHERE old.id = new.id AND old.version = new.expected
RETURNING old.id

-- name: live_instances
-- Instances that are not terminated, oldest first.
SELECT body FROM instances WHERE live = 1 ORDER BY created_us, id

-- name: instance
-- One instance by id.
SELECT body FROM instances WHERE id = $1

-- name: recent_instances
-- Newest instances first, terminated ones included.
SELECT body FROM instances ORDER BY created_us DESC, id DESC LIMIT $1

-- name: recent_instances_of_pool
-- Newest instances of pool $2 first, terminated ones included.
SELECT body FROM instances WHERE pool = $2 ORDER BY created_us DESC, id DESC LIMIT $1

-- name: insert_move
-- One line of an instance's history.
INSERT INTO instance_moves (instance, body) VALUES ($1, $2)

-- name: insert_move [postgres]
-- Many lines of history, in order.
INSERT INTO instance_moves (instance, body)
SELECT instance, body FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS new (instance, body, place) ORDER BY place

-- name: moves
-- The history of instance $1, oldest first.
SELECT body FROM instance_moves WHERE instance = $1 ORDER BY seq

-- name: recent_moves
-- The last moves of all instances, newest first.
SELECT body FROM instance_moves WHERE seq > 0 ORDER BY seq DESC LIMIT $1

-- name: ended_instances
-- At most $2 instances that terminated before $1.
SELECT id FROM instances WHERE live = 0 AND created_us < $1 AND since_us < $1 ORDER BY created_us, id LIMIT $2

-- name: delete_moves
-- The history of one instance goes.
DELETE FROM instance_moves WHERE instance = $1

-- name: delete_moves [postgres]
-- The history of many instances goes.
DELETE FROM instance_moves WHERE instance = ANY($1::text[])

-- name: delete_instance
-- One instance goes.
DELETE FROM instances WHERE id = $1

-- name: delete_instance [postgres]
-- Many instances go.
DELETE FROM instances WHERE id = ANY($1::text[])

-- ------------------------------------------------------------------------- ledger

-- name: insert_ledger
-- One entry.
INSERT INTO ledger (at_us, subject, body) VALUES ($1, $2, $3)

-- name: insert_ledger [postgres]
-- Many entries, in order.
INSERT INTO ledger (at_us, subject, body)
SELECT at_us, subject, body
FROM unnest($1::bigint[], $2::text[], $3::text[]) WITH ORDINALITY AS new (at_us, subject, body, place) ORDER BY place

-- name: ledger
-- Newest entries first, older than sequence number $2.
SELECT seq, body FROM ledger WHERE seq < $2 ORDER BY seq DESC LIMIT $1

-- name: ledger_of_subject
-- Newest entries about subject $3 first, older than sequence number $2.
SELECT seq, body FROM ledger WHERE subject = $3 AND seq < $2 ORDER BY seq DESC LIMIT $1

-- name: prune_ledger
-- At most $2 entries from before $1.
DELETE FROM ledger WHERE seq IN (SELECT seq FROM ledger WHERE at_us < $1 ORDER BY at_us LIMIT $2)
RETURNING seq

-- ------------------------------------------------------------------------- costs

-- name: insert_cost
-- What one ended machine cost in one use.
INSERT INTO costs (
    instance, use, ended_us, day, provider, pool, capacity_type, repo, workflow, milliseconds, usd_nano, on_demand_usd_nano
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: insert_cost [postgres]
-- What many ended machines cost.
INSERT INTO costs (
    instance, use, ended_us, day, provider, pool, capacity_type, repo, workflow, milliseconds, usd_nano, on_demand_usd_nano
)
SELECT * FROM unnest(
    $1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::bigint[], $11::bigint[], $12::bigint[]
)

-- name: turn_cost
-- The time that machine $1 spent on its job goes to use $2: job or lost.
UPDATE costs SET use = $2 WHERE instance = $1 AND use IN ('job', 'lost')

-- name: costs
-- Cost lines of machines that ended from $1 on and before $2, added up.
SELECT day, provider, pool, capacity_type, repo, workflow, use, COUNT(*), CAST(SUM(milliseconds) AS bigint),
    CAST(SUM(usd_nano) AS bigint), CAST(SUM(on_demand_usd_nano) AS bigint)
FROM costs WHERE ended_us >= $1 AND ended_us < $2
GROUP BY day, provider, pool, capacity_type, repo, workflow, use
ORDER BY day, provider, pool, capacity_type, repo, workflow, use

-- name: prune_costs
-- At most $2 cost lines of machines that ended before $1.
DELETE FROM costs WHERE instance IN (SELECT instance FROM costs WHERE ended_us < $1 ORDER BY ended_us LIMIT $2)
RETURNING instance

-- ------------------------------------------------------------------------- interruptions

-- name: put_interruption
-- What is known of the loss of machine $1; $2: the machine has not ended.
INSERT INTO interruptions (instance, live, noticed_us, body) VALUES ($1, $2, $3, $4)
ON CONFLICT (instance) DO UPDATE SET live = excluded.live, noticed_us = excluded.noticed_us, body = excluded.body

-- name: live_interruptions
-- Those of machines that have not ended, oldest first.
SELECT body FROM interruptions WHERE live = 1 ORDER BY noticed_us, instance

-- name: interruption
-- The one of machine $1.
SELECT body FROM interruptions WHERE instance = $1

-- name: recent_interruptions
-- The last $1, newest first.
SELECT body FROM interruptions ORDER BY noticed_us DESC, instance DESC LIMIT $1

-- name: prune_interruptions
-- At most $2 of ended machines, noticed before $1.
DELETE FROM interruptions WHERE instance IN (
    SELECT instance FROM interruptions WHERE live = 0 AND noticed_us < $1 ORDER BY noticed_us LIMIT $2
)
RETURNING instance

-- ------------------------------------------------------------------------- inbox

-- name: accept
-- A webhook becomes durable; its delivery id makes a repeat change nothing and return no row.
INSERT INTO inbox (forge, delivery_id, received_us, body) VALUES ($1, $2, $3, $4)
ON CONFLICT (forge, delivery_id) DO NOTHING
RETURNING seq

-- name: accept [postgres]
-- Many webhooks, in order; repeats return no row.
INSERT INTO inbox (forge, delivery_id, received_us, body)
SELECT forge, delivery_id, received_us, body
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
    WITH ORDINALITY AS new (forge, delivery_id, received_us, body, place)
ORDER BY place
ON CONFLICT (forge, delivery_id) DO NOTHING
RETURNING seq, forge, delivery_id

-- name: consume
-- A tick used the webhook: its body goes, its delivery id stays to recognise repeats.
UPDATE inbox SET consumed = 1, body = '' WHERE seq = $1

-- name: consume [postgres]
-- A tick used these webhooks: their bodies go, their delivery ids stay to recognise repeats.
UPDATE inbox SET consumed = 1, body = '' WHERE seq = ANY($1::bigint[])

-- name: waiting_inbox
-- Webhooks that no tick used yet, in order of arrival.
SELECT seq, forge, received_us, body FROM inbox WHERE consumed = 0 ORDER BY seq

-- name: prune_inbox
-- At most $2 used webhooks received before $1, delivery ids included.
DELETE FROM inbox WHERE seq IN (
    SELECT seq FROM inbox WHERE consumed = 1 AND received_us < $1 ORDER BY received_us LIMIT $2
)
RETURNING seq

-- ------------------------------------------------------------------------- samples, evidence, controls, settings

-- name: put_sample
-- One pool at one instant.
INSERT INTO samples (at_us, pool, body) VALUES ($1, $2, $3)
ON CONFLICT (at_us, pool) DO UPDATE SET body = excluded.body

-- name: samples
-- Samples from $1 on, oldest first.
SELECT body FROM samples WHERE at_us >= $1 ORDER BY at_us, pool

-- name: prune_samples
-- At most $2 samples from before $1, whole instants at a time.
DELETE FROM samples
WHERE at_us <= (SELECT max(at_us) FROM (SELECT at_us FROM samples WHERE at_us < $1 ORDER BY at_us LIMIT $2) AS oldest)
RETURNING at_us

-- name: put_evidence
-- What our machines taught us of one capacity pool.
INSERT INTO capacity_evidence (capacity_pool, at_us, body) VALUES ($1, $2, $3)
ON CONFLICT (capacity_pool) DO UPDATE SET at_us = excluded.at_us, body = excluded.body

-- name: evidence
-- What is known of every capacity pool.
SELECT body FROM capacity_evidence ORDER BY capacity_pool

-- name: prune_evidence
-- At most $2 capacity pools of which nothing was learned since $1.
DELETE FROM capacity_evidence
WHERE capacity_pool IN (SELECT capacity_pool FROM capacity_evidence WHERE at_us < $1 ORDER BY at_us LIMIT $2)
RETURNING capacity_pool

-- name: put_learned
-- What history taught under one key.
INSERT INTO learned (name, at_us, body) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET at_us = excluded.at_us, body = excluded.body

-- name: delete_learned
-- What was forgotten for the sake of something newer.
DELETE FROM learned WHERE name = $1

-- name: learned
-- All that history taught.
SELECT body FROM learned ORDER BY name

-- name: prune_learned
-- At most $2 keys under which nothing was added since $1.
DELETE FROM learned WHERE name IN (SELECT name FROM learned WHERE at_us < $1 ORDER BY at_us LIMIT $2)
RETURNING name

-- name: put_control
-- An operator's hand on a pool.
INSERT INTO controls (pool, control) VALUES ($1, $2)
ON CONFLICT (pool) DO UPDATE SET control = excluded.control

-- name: controls
-- All operator controls.
SELECT pool, control FROM controls ORDER BY pool

-- name: put_setting
-- A small text by name.
INSERT INTO settings (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: delete_setting
-- A small text goes.
DELETE FROM settings WHERE name = $1

-- name: settings
-- All small texts.
SELECT name, value FROM settings ORDER BY name

-- ------------------------------------------------------------------------- schema

-- name: create_schema_version
-- Where the applied migrations are recorded.
CREATE TABLE IF NOT EXISTS schema_version (version bigint PRIMARY KEY, name text NOT NULL)

-- name: schema_version
-- The newest migration applied; 0 before the first.
SELECT coalesce(max(version), 0) FROM schema_version

-- name: record_migration
-- Migration $1 (number) $2 (name) was applied.
INSERT INTO schema_version (version, name) VALUES ($1, $2)
