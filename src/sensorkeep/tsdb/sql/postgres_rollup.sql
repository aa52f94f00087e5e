-- Aggregates of raw readings: the definitions of module rollup in SQL. {source} is a selection of readings.
-- Values that a double cannot add up or square are left out of sum and m2, and the bucket is `extreme`: it is then
-- computed by tsdb/aggregating.py. The continuous aggregates (postgres_schema.sql) say the same.

-- name: hour_aggregate
SELECT
    series,
    date_bin(INTERVAL '1 hour', time, TIMESTAMPTZ '2000-01-01 00:00:00+00') AS bucket,
    count(value) AS count,
    sum(value) FILTER (WHERE abs(value) < 1e150) AS sum,
    min(value) AS min,
    max(value) AS max,
    regr_sxx(value, value) FILTER (WHERE abs(value) < 1e150) AS m2,
    bit_or(1::BIGINT << extract(minute FROM time AT TIME ZONE 'UTC')::INTEGER) AS minutes,
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY value) AS percentiles,
    coalesce(max(abs(value)) >= 1e150, false) AS extreme
FROM ({source}) AS source
GROUP BY series, bucket

-- name: day_aggregate
SELECT
    series,
    date_bin(INTERVAL '1 day', time, TIMESTAMPTZ '2000-01-01 00:00:00+00') AS bucket,
    count(value) AS count,
    sum(value) FILTER (WHERE abs(value) < 1e150) AS sum,
    min(value) AS min,
    max(value) AS max,
    regr_sxx(value, value) FILTER (WHERE abs(value) < 1e150) AS m2,
    bit_or(
        set_bit(
            (repeat('0', 1440))::BIT(1440),
            (extract(hour FROM time AT TIME ZONE 'UTC') * 60 + extract(minute FROM time AT TIME ZONE 'UTC'))::INTEGER,
            1
        )
    ) AS minutes,
    percentile_cont(%(grid)s::DOUBLE PRECISION[]) WITHIN GROUP (ORDER BY value) AS percentiles,
    coalesce(max(abs(value)) >= 1e150, false) AS extreme
FROM ({source}) AS source
GROUP BY series, bucket

-- name: readings_between
SELECT series, time, value FROM readings WHERE time >= %(start)s AND time < %(end)s

-- name: readings_of_hours
-- Of hours that were marked: few beside all.
SELECT readings.series, readings.time, readings.value
FROM unnest(%(series)s::INTEGER[], %(time_us)s::BIGINT[]) AS wanted (series, time_us)
JOIN readings ON readings.series = wanted.series
    AND readings.time >= to_timestamp(wanted.time_us / 1e6)
    AND readings.time < to_timestamp(wanted.time_us / 1e6) + INTERVAL '1 hour'
WHERE readings.time >= %(start)s AND readings.time < %(end)s

-- name: readings_of_days
SELECT readings.series, readings.time, readings.value
FROM unnest(%(series)s::INTEGER[], %(time_us)s::BIGINT[]) AS wanted (series, time_us)
JOIN readings ON readings.series = wanted.series
    AND readings.time >= to_timestamp(wanted.time_us / 1e6)
    AND readings.time < to_timestamp(wanted.time_us / 1e6) + INTERVAL '1 day'
WHERE readings.time >= %(start)s AND readings.time < %(end)s

-- name: save_hours
-- {aggregate}: hour_aggregate. Extreme hours are answered, to be computed and saved once more.
WITH made AS MATERIALIZED ({aggregate}), saved AS (
    INSERT INTO hourly
    SELECT
        series, bucket, count, sum, min, max, m2, minutes, percentiles[1], percentiles[2], percentiles[3], false
    FROM made
    ON CONFLICT (series, time) DO UPDATE SET
        count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
        minutes = excluded.minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99,
        approximate = excluded.approximate
)
SELECT series, (extract(epoch FROM bucket) * 1e6)::BIGINT FROM made WHERE extreme

-- name: save_days
-- Single precision cannot hold every double, hence the bounds of the grid.
WITH made AS MATERIALIZED ({aggregate}), saved AS (
    INSERT INTO daily
    SELECT
        series, bucket, count, sum, min, max, m2, bit_count(minutes)::INTEGER,
        percentiles[%(median)s], percentiles[%(p95)s], percentiles[%(p99)s], false,
        (SELECT array_agg(greatest(least(value, 3.4e38), -3.4e38)::REAL ORDER BY place)
            FROM unnest(percentiles) WITH ORDINALITY AS grid (value, place))
    FROM made
    ON CONFLICT (series, time) DO UPDATE SET
        count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
        active_minutes = excluded.active_minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99,
        approximate = excluded.approximate, grid = excluded.grid
)
SELECT series, (extract(epoch FROM bucket) * 1e6)::BIGINT FROM made WHERE extreme

-- name: put_hours
-- Buckets that were computed or merged outside of the database.
INSERT INTO hourly
SELECT series, to_timestamp(time_us / 1e6), count, sum, min, max, m2, minutes, median, p95, p99, approximate
FROM unnest(
    %(series)s::INTEGER[], %(time_us)s::BIGINT[], %(count)s::BIGINT[], %(sum)s::DOUBLE PRECISION[],
    %(min)s::DOUBLE PRECISION[], %(max)s::DOUBLE PRECISION[], %(m2)s::DOUBLE PRECISION[], %(minutes)s::BIGINT[],
    %(median)s::DOUBLE PRECISION[], %(p95)s::DOUBLE PRECISION[], %(p99)s::DOUBLE PRECISION[], %(approximate)s::BOOLEAN[]
) AS new (series, time_us, count, sum, min, max, m2, minutes, median, p95, p99, approximate)
ORDER BY series, time_us
ON CONFLICT (series, time) DO UPDATE SET
    count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
    minutes = excluded.minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99,
    approximate = excluded.approximate

-- name: put_days
-- The grids of all days stand one after the other, so many points of each; a day without values has none.
INSERT INTO daily
SELECT
    series, to_timestamp(time_us / 1e6), count, sum, min, max, m2, active_minutes, median, p95, p99, approximate,
    CASE WHEN count = 0 THEN NULL ELSE
        (%(grids)s::REAL[])[((place - 1) * %(points)s + 1)::INTEGER:(place * %(points)s)::INTEGER]
    END
FROM unnest(
    %(series)s::INTEGER[], %(time_us)s::BIGINT[], %(count)s::BIGINT[], %(sum)s::DOUBLE PRECISION[],
    %(min)s::DOUBLE PRECISION[], %(max)s::DOUBLE PRECISION[], %(m2)s::DOUBLE PRECISION[],
    %(active_minutes)s::INTEGER[], %(median)s::DOUBLE PRECISION[], %(p95)s::DOUBLE PRECISION[],
    %(p99)s::DOUBLE PRECISION[], %(approximate)s::BOOLEAN[]
) WITH ORDINALITY AS new
    (series, time_us, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, place)
ORDER BY series, time_us
ON CONFLICT (series, time) DO UPDATE SET
    count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
    active_minutes = excluded.active_minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99,
    approximate = excluded.approximate, grid = excluded.grid

-- name: move_marking
UPDATE marks SET marking_until = %(until)s WHERE marking_until IS NULL OR marking_until < %(until)s

-- name: move_rolled
UPDATE marks SET rolled_until = %(until)s

-- name: maintenance_state
SELECT
    (extract(epoch FROM marking_until) * 1e6)::BIGINT,
    (extract(epoch FROM rolled_until) * 1e6)::BIGINT,
    (extract(epoch FROM refreshed_at) * 1e6)::BIGINT,
    (SELECT min(day) FROM days WHERE NOT sealed),
    (SELECT max(day) FROM days WHERE NOT sealed),
    EXISTS (SELECT FROM dirty)
FROM marks

-- name: next_day
SELECT min(day) FROM days WHERE NOT sealed AND day >= %(day)s

-- name: newest_reading
SELECT (extract(epoch FROM max(time)) * 1e6)::BIGINT FROM readings WHERE time >= %(start)s AND time < %(end)s

-- name: some_dirty
SELECT id, series, (extract(epoch FROM time) * 1e6)::BIGINT FROM dirty ORDER BY id LIMIT %(limit)s

-- name: forget_dirty
DELETE FROM dirty WHERE id = ANY(%(ids)s)

-- name: forget_dirty_of_day
DELETE FROM dirty WHERE time >= %(start)s AND time < %(end)s

-- name: dirty_range
SELECT (extract(epoch FROM min(time)) * 1e6)::BIGINT, max(id) FROM dirty

-- name: forget_dirty_until
DELETE FROM dirty WHERE id <= %(id)s

-- name: mark_refreshed
UPDATE marks SET refreshed_at = to_timestamp(%(now_us)s / 1e6)

-- name: days_to_seal
SELECT day FROM days
WHERE NOT sealed AND day <= %(last)s AND last_write <= to_timestamp(%(quiet_us)s / 1e6)
ORDER BY day LIMIT %(limit)s

-- name: seal_day
UPDATE days SET sealed = true WHERE day = %(day)s

-- name: add_sealed_days
INSERT INTO days (day, sealed, last_write)
SELECT day, true, to_timestamp(%(now_us)s / 1e6) FROM unnest(%(days)s::INTEGER[]) AS day ON CONFLICT DO NOTHING

-- name: unsealed_of
SELECT day FROM days WHERE day = ANY(%(days)s) AND NOT sealed

-- name: drop_partition
DROP TABLE IF EXISTS telemetry.{partition}

-- name: drop_chunks
SELECT {schema}.drop_chunks('telemetry.readings', older_than => %(end)s::TIMESTAMPTZ, newer_than => %(start)s::TIMESTAMPTZ)

-- name: prune_batches
DELETE FROM batches WHERE batch_id IN (
    SELECT batch_id FROM batches WHERE written_at < to_timestamp(%(before_us)s / 1e6) LIMIT %(limit)s
)

-- name: refresh
CALL {schema}.refresh_continuous_aggregate('telemetry.{aggregate}', %(start)s::TIMESTAMPTZ, %(end)s::TIMESTAMPTZ)
