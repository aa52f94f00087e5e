-- Aggregates of raw readings: the definitions of module rollup in SQL. The continuous aggregates of TimescaleDB are made
-- of the same expressions (postgres_schema.sql, which also says why sums and percentiles are taken in this way).

-- name: moment_columns
    count(value) AS count,
    total(
        moments(value) FILTER (WHERE value BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145)
    ) AS sum,
    min(value) AS min,
    max(value) AS max,
    deviations(
        moments(value) FILTER (WHERE value BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC * value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145),
        count(value)
    ) AS m2

-- name: hour_columns
    {moments},
    bit_or(1::BIGINT << date_part('minute', time AT TIME ZONE 'UTC')::INTEGER) AS minutes,
    percentile_cont(%(hour)s::DOUBLE PRECISION[]) WITHIN GROUP (ORDER BY half(value)) AS halves

-- name: day_columns
    {moments},
    count(DISTINCT date_trunc('minute', time AT TIME ZONE 'UTC'))::INTEGER AS active_minutes,
    percentile_cont(%(day)s::DOUBLE PRECISION[]) WITHIN GROUP (ORDER BY half(value)) AS halves

-- name: hour_aggregate
-- {source}: readings as (series, time, value).
SELECT
    series, time, count, sum, min, max, m2, minutes, doubled(halves[1]) AS median, doubled(halves[2]) AS p95,
    doubled(halves[3]) AS p99
FROM (
    SELECT series, date_bin(INTERVAL '1 hour', time, TIMESTAMPTZ '0001-01-01 00:00:00+00') AS time, {columns}
    FROM ({source}) AS source
    GROUP BY 1, 2
) AS made

-- name: day_aggregate
SELECT
    series, time, count, sum, min, max, m2, active_minutes, doubled(halves[%(median)s]) AS median,
    doubled(halves[%(p95)s]) AS p95, doubled(halves[%(p99)s]) AS p99, picture(halves) AS grid
FROM (
    SELECT series, date_bin(INTERVAL '1 day', time, TIMESTAMPTZ '0001-01-01 00:00:00+00') AS time, {columns}
    FROM ({source}) AS source
    GROUP BY 1, 2
) AS made

-- name: readings_of_slice
-- One day, or a part of it, some sensors.
SELECT series, time, value FROM readings
WHERE time >= %(start)s AND time < %(end)s AND series > %(after)s AND series <= %(upto)s

-- name: readings_of_sensors
SELECT series, time, value FROM readings
WHERE time >= %(start)s AND time < %(end)s AND series = ANY(%(series)s)

-- name: readings_of_hours
-- Of single hours, all in [start, end): looked up one after the other, whatever the planner thinks.
SELECT found.series, found.time, found.value
FROM unnest(%(hour_series)s::INTEGER[], %(hour_us)s::BIGINT[]) AS wanted (series, time_us)
CROSS JOIN LATERAL (
    SELECT series, time, value FROM readings
    WHERE series = wanted.series AND time >= %(start)s AND time < %(end)s
        AND time >= to_timestamp(wanted.time_us / 1000000)
        AND time < to_timestamp(wanted.time_us / 1000000 + 3600)
    OFFSET 0
) AS found

-- name: save_hours
-- {aggregate}: hour_aggregate.
INSERT INTO telemetry_hourly (series, time, count, sum, min, max, m2, minutes, median, p95, p99)
SELECT * FROM ({aggregate}) AS made ORDER BY series, time
ON CONFLICT (series, time) DO UPDATE SET
    count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
    minutes = excluded.minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99

-- name: save_days
INSERT INTO telemetry_daily (series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, grid)
SELECT * FROM ({aggregate}) AS made ORDER BY series, time
ON CONFLICT (series, time) DO UPDATE SET
    count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max, m2 = excluded.m2,
    active_minutes = excluded.active_minutes, median = excluded.median, p95 = excluded.p95, p99 = excluded.p99,
    grid = excluded.grid
