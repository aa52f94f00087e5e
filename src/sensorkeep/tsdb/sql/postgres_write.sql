-- Writing batches into PostgreSQL. Locks, in this order: the shared lock of writers, batches by id, readings by
-- (series, time), sealed days by number; so that no two writers wait for each other.

-- name: lock_writers
-- Held by writers side by side; whoever moves the marks or seals a day takes it alone.
SELECT pg_advisory_xact_lock_shared(7363282, 1)

-- name: lock_writers_out
SELECT pg_advisory_xact_lock(7363282, 1)

-- name: lock_days
SELECT pg_advisory_xact_lock(7363282, 2)

-- name: try_maintenance
SELECT pg_try_advisory_lock(7363282, 3)

-- name: end_maintenance
SELECT pg_advisory_unlock(7363282, 3)

-- name: find_series
SELECT uuid::TEXT, id FROM series WHERE uuid = ANY(%(uuids)s::UUID[])

-- name: add_series
INSERT INTO series (uuid) SELECT uuid FROM unnest(%(uuids)s::UUID[]) AS uuid ORDER BY uuid
ON CONFLICT DO NOTHING

-- name: claim_batches
-- Whoever else writes one of them now is waited for; those that are not returned are known.
INSERT INTO batches (batch_id, written_at)
SELECT batch_id, to_timestamp(%(now_us)s / 1e6) FROM unnest(%(batch_ids)s::TEXT[]) AS batch_id ORDER BY batch_id
ON CONFLICT DO NOTHING
RETURNING batch_id

-- name: known_batches
SELECT batch_id, stored, updated, duplicate FROM batches WHERE batch_id = ANY(%(batch_ids)s)

-- name: save_counts
UPDATE batches SET stored = new.stored, updated = new.updated, duplicate = new.duplicate
FROM unnest(%(batch_ids)s::TEXT[], %(stored)s::BIGINT[], %(updated)s::BIGINT[], %(duplicate)s::BIGINT[])
    AS new (batch_id, stored, updated, duplicate)
WHERE batches.batch_id = new.batch_id

-- name: marks
SELECT (extract(epoch FROM marking_until) * 1e6)::BIGINT, (extract(epoch FROM rolled_until) * 1e6)::BIGINT
FROM marks

-- name: days_of
SELECT day, sealed FROM days WHERE day = ANY(%(days)s)

-- name: add_day
INSERT INTO days (day, last_write) VALUES (%(day)s, to_timestamp(%(now_us)s / 1e6)) ON CONFLICT DO NOTHING

-- name: touch_days
-- In order, and only now and then, so that writers of one day do not wait for each other.
UPDATE days SET last_write = to_timestamp(%(now_us)s / 1e6) FROM (
    SELECT day FROM days
    WHERE day = ANY(%(days)s) AND last_write < to_timestamp(%(now_us)s / 1e6) - INTERVAL '1 minute'
    ORDER BY day FOR UPDATE SKIP LOCKED
) AS touched
WHERE days.day = touched.day

-- name: partition_exists
SELECT to_regclass(%(name)s) IS NOT NULL

-- name: create_partition
-- Made beside the table and then attached: that needs no lock that stops the writers of other days.
CREATE TABLE telemetry.{partition} (LIKE telemetry.readings INCLUDING ALL)

-- name: check_partition
ALTER TABLE telemetry.{partition} ADD CONSTRAINT whole_day CHECK (time >= '{start}' AND time < '{end}')

-- name: attach_partition
ALTER TABLE telemetry.readings ATTACH PARTITION telemetry.{partition} FOR VALUES FROM ('{start}') TO ('{end}')

-- name: create_incoming
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    series INTEGER,
    time TIMESTAMPTZ,
    value DOUBLE PRECISION,
    status TEXT,
    battery REAL,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage REAL,
    position BIGINT
) ON COMMIT DELETE ROWS

-- name: insert_new
-- In order, and each identity once: two writers of the same readings cannot wait for each other. Answers the positions
-- of those that are there already, which another transaction may just have written.
WITH new AS (
    INSERT INTO readings (series, time, value, status, battery, rssi, lqi, battery_voltage)
    SELECT series, time, value, status, battery, rssi, lqi, battery_voltage FROM incoming
    ORDER BY series, time
    ON CONFLICT DO NOTHING
    RETURNING series, time
)
SELECT position FROM incoming LEFT JOIN new USING (series, time) WHERE new.series IS NULL

-- name: by_index
-- What follows looks up single readings; the planner does not know how few they are.
SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off

-- name: known_readings
SELECT
    incoming.position, readings.value, readings.status, readings.battery, readings.rssi, readings.lqi,
    readings.battery_voltage
FROM incoming JOIN readings ON readings.series = incoming.series AND readings.time = incoming.time
WHERE incoming.position = ANY(%(positions)s) AND readings.time >= %(first)s AND readings.time <= %(last)s

-- name: update_readings
-- Where another transaction has just written the same, nothing is changed, and the writer tries again.
UPDATE readings SET
    value = incoming.value, status = incoming.status, battery = incoming.battery, rssi = incoming.rssi,
    lqi = incoming.lqi, battery_voltage = incoming.battery_voltage
FROM (SELECT * FROM incoming WHERE position = ANY(%(positions)s) ORDER BY series, time) AS incoming
WHERE readings.series = incoming.series AND readings.time = incoming.time
    AND readings.time >= %(first)s AND readings.time <= %(last)s
    AND (readings.value, readings.status, readings.battery, readings.rssi, readings.lqi, readings.battery_voltage)
        IS DISTINCT FROM
        (incoming.value, incoming.status, incoming.battery, incoming.rssi, incoming.lqi, incoming.battery_voltage)

-- name: mark_dirty
INSERT INTO dirty (series, time)
SELECT series, to_timestamp(time_us / 1e6) FROM unnest(%(series)s::INTEGER[], %(time_us)s::BIGINT[]) AS hours (series, time_us)
ORDER BY series, time_us
