-- Writing batches into PostgreSQL. Locks are taken in this order: the shared lock of writers, batches by id, new
-- readings by (series, time), readings that are there by (series, time), sealed buckets. New readings are waited for
-- only by those who bring the same, and who waits holds nothing that comes later; so no circle of waiting can close.

-- name: lock_writers
-- Held by writers side by side; whoever moves `marking_until` waits for those in flight.
SELECT pg_advisory_xact_lock_shared(7363282, 1)

-- name: lock_days
-- Days are made by one at a time.
SELECT pg_advisory_xact_lock(7363282, 2)

-- name: find_series
SELECT uuid, id FROM series WHERE uuid = ANY(%(uuids)s)

-- name: add_series
INSERT INTO series (uuid) SELECT uuid FROM unnest(%(uuids)s::TEXT[]) AS uuid ORDER BY uuid
ON CONFLICT DO NOTHING

-- name: claim_batches
-- Whoever else writes one of them now is waited for. Those that are settled are not returned.
INSERT INTO batches (batch_id, until_day, written_at)
SELECT batch_id, -2147483648, %(now)s FROM unnest(%(batch_ids)s::TEXT[]) AS batch_id ORDER BY batch_id
ON CONFLICT (batch_id) DO UPDATE SET written_at = excluded.written_at WHERE batches.until_day IS NOT NULL
RETURNING batch_id, stored, updated, duplicate, until_day

-- name: known_batches
SELECT batch_id, stored, updated, duplicate FROM batches WHERE batch_id = ANY(%(batch_ids)s) AND until_day IS NULL

-- name: save_counts
-- %(until_day)s is null where the batches are settled by it.
UPDATE batches SET
    stored = new.stored, updated = new.updated, duplicate = new.duplicate,
    until_day = CASE WHEN %(until_day)s::INTEGER IS NOT NULL THEN greatest(until_day, %(until_day)s::INTEGER) END,
    newest = greatest(newest, %(newest)s::TIMESTAMPTZ)
FROM unnest(%(batch_ids)s::TEXT[], %(stored)s::BIGINT[], %(updated)s::BIGINT[], %(duplicate)s::BIGINT[])
    AS new (batch_id, stored, updated, duplicate)
WHERE batches.batch_id = new.batch_id

-- name: writing_state
-- The first after lock_writers: `marking_until` stands still until the end.
SELECT
    (SELECT (extract(epoch FROM marking_until) * 1000000)::BIGINT FROM marks),
    (SELECT array_agg(day) FROM days WHERE day = ANY(%(days)s) AND NOT sealed),
    (SELECT array_agg(day) FROM days WHERE day = ANY(%(days)s) AND sealed)

-- name: add_days
INSERT INTO days (day, last_write) SELECT day, %(now)s FROM unnest(%(days)s::INTEGER[]) AS day
ON CONFLICT DO NOTHING RETURNING day

-- name: make_days
SELECT make_day(DATE '1970-01-01' + day) FROM unnest(%(days)s::INTEGER[]) AS day

-- name: touch_days
-- Only now and then, and passing over those that somebody else touches, so that writers of one day never wait for this.
UPDATE days SET last_write = %(now)s FROM (
    SELECT day FROM days
    WHERE day = ANY(%(days)s) AND last_write < %(now)s - INTERVAL '1 minute'
    ORDER BY day FOR UPDATE SKIP LOCKED
) AS touched
WHERE days.day = touched.day

-- name: create_incoming
-- One row an identity, in the order of (series, time): the last of its readings. `position` counts them from 0.
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    series INTEGER,
    time TIMESTAMPTZ,
    value DOUBLE PRECISION,
    status TEXT,
    battery REAL,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage REAL,
    accepted_us BIGINT,
    position INTEGER
) ON COMMIT DELETE ROWS

-- name: known_readings
-- What is stored of the identities of one day: looked up one after the other, whatever the planner thinks. This and a
-- plain insert of the rest take two thirds of the time of an insert that looks for conflicts itself.
SELECT
    incoming.position, known.value, known.status, known.battery, known.rssi, known.lqi, known.battery_voltage,
    known.accepted_us
FROM incoming
CROSS JOIN LATERAL (
    SELECT * FROM readings
    WHERE series = incoming.series AND time = incoming.time AND time >= %(start)s AND time < %(end)s
    OFFSET 0
) AS known
WHERE incoming.time >= %(start)s AND incoming.time < %(end)s

-- name: insert_new
-- One that another transaction has just written makes it fail; the writer tries again, and then knows it.
INSERT INTO readings (series, time, value, status, battery, rssi, lqi, battery_voltage, accepted_us)
SELECT series, time, value, status, battery, rssi, lqi, battery_voltage, accepted_us FROM incoming
WHERE position <> ALL(%(known)s::INTEGER[])

-- name: change_readings
-- What another transaction has just made the same, or has from a later batch, is left as it is; the writer notices by
-- the number of rows. An insert, because TimescaleDB finds what to decompress by the key of each row; an update of
-- many decompresses everything.
INSERT INTO readings (series, time, value, status, battery, rssi, lqi, battery_voltage, accepted_us)
SELECT series, time, value, status, battery, rssi, lqi, battery_voltage, accepted_us FROM incoming
WHERE position = ANY(%(positions)s)
ON CONFLICT (series, time) DO UPDATE SET
    value = excluded.value, status = excluded.status, battery = excluded.battery, rssi = excluded.rssi,
    lqi = excluded.lqi, battery_voltage = excluded.battery_voltage, accepted_us = excluded.accepted_us
WHERE readings.accepted_us <= excluded.accepted_us
    AND (readings.value, readings.status, readings.battery, readings.rssi, readings.lqi, readings.battery_voltage)
        IS DISTINCT FROM
        (excluded.value, excluded.status, excluded.battery, excluded.rssi, excluded.lqi, excluded.battery_voltage)

-- name: confirm_readings
-- The same content from a later batch: nothing new, but what was accepted in between must not replace it any more.
INSERT INTO readings (series, time, value, status, battery, rssi, lqi, battery_voltage, accepted_us)
SELECT series, time, value, status, battery, rssi, lqi, battery_voltage, accepted_us FROM incoming
WHERE position = ANY(%(positions)s)
ON CONFLICT (series, time) DO UPDATE SET accepted_us = excluded.accepted_us
WHERE readings.accepted_us < excluded.accepted_us
    AND (readings.value, readings.status, readings.battery, readings.rssi, readings.lqi, readings.battery_voltage)
        IS NOT DISTINCT FROM
        (excluded.value, excluded.status, excluded.battery, excluded.rssi, excluded.lqi, excluded.battery_voltage)

-- name: tune_timescale
-- A late reading may need a thousand others decompressed, and a batch may bring many. And where readings are looked up
-- one by one, choosing their chunk anew for each costs six times as much as finding it: the bounds have named it.
SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
SET LOCAL timescaledb.enable_chunk_append = off

-- name: mark_dirty
INSERT INTO dirty (series, time)
SELECT series, to_timestamp(hour * 3600.0) FROM unnest(%(series)s::INTEGER[], %(hours)s::BIGINT[]) AS touched (series, hour)

-- name: lock_sealed
-- One merge at a time: it reads buckets and writes them back. Reads go on, and so does the sealing of other days, which
-- waits for writers while it holds the tables: hence no lock of these.
SELECT pg_advisory_xact_lock(7363282, 5)

-- name: add_sealed_days
INSERT INTO days (day, sealed, last_write) SELECT day, true, %(now)s FROM unnest(%(days)s::INTEGER[]) AS day
ON CONFLICT DO NOTHING

-- name: put_hours
INSERT INTO sealed_hourly (series, time, count, sum, min, max, m2, minutes, median, p95, p99, approximate)
SELECT series, time, count, sum, min, max, m2, minutes, median, p95, p99, approximate FROM incoming_hours
ORDER BY series, time
ON CONFLICT (series, time) DO UPDATE SET
    count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
    minutes = excluded.minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99,
    approximate = excluded.approximate

-- name: put_days
INSERT INTO sealed_daily (series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid)
SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid FROM incoming_days
ORDER BY series, time
ON CONFLICT (series, time) DO UPDATE SET
    count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
    active_minutes = excluded.active_minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99,
    approximate = excluded.approximate, grid = excluded.grid

-- name: create_incoming_hours
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_hours (LIKE telemetry.sealed_hourly) ON COMMIT DELETE ROWS

-- name: create_incoming_days
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_days (LIKE telemetry.sealed_daily) ON COMMIT DELETE ROWS
