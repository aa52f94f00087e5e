-- Statements of the reads. %(series)s lists the numbers of the sensors asked for, in the order of their places.

-- name: lock_days_in
-- Before the snapshot of the transaction is taken, which LOCK does not do: no day that it sees goes before it ends.
LOCK TABLE days IN ACCESS SHARE MODE

-- name: view
-- What a read must know, in one row.
SELECT
    (SELECT (extract(epoch FROM rolled_until) * 1000000)::BIGINT FROM marks),
    (SELECT array_agg(day ORDER BY day) FROM days WHERE day >= %(first)s AND day <= %(last)s AND NOT sealed),
    EXISTS (SELECT FROM days WHERE day >= %(first)s AND day <= %(last)s AND sealed),
    (SELECT min(day) FROM days WHERE day >= %(first)s AND day <= %(last)s),
    (SELECT max(day) FROM days WHERE day >= %(first)s AND day <= %(last)s)

-- name: first_readings
-- At %(after)s itself only the sensors after %(place)s (from 1).
SELECT place::INTEGER, time, value, status, battery, rssi, lqi, battery_voltage
FROM readings JOIN unnest(%(series)s::INTEGER[]) WITH ORDINALITY AS asked (series, place) USING (series)
WHERE readings.series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s
    AND (time > %(after)s OR place > %(place)s)
ORDER BY time, place
LIMIT %(limit)s

-- name: dirty_hours
SELECT DISTINCT series, (extract(epoch FROM time) * 1000000)::BIGINT FROM dirty
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: stored_hours
SELECT series, time, count, sum, min, max, m2, minutes, median, p95, p99, false AS approximate FROM telemetry_hourly
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s AND time < %(rolled)s
UNION ALL
SELECT series, time, count, sum, min, max, m2, minutes, median, p95, p99, approximate FROM sealed_hourly
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: stored_days
SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, false AS approximate, grid
FROM telemetry_daily
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s AND time < %(rolled)s
UNION ALL
SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid FROM sealed_daily
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: first_stored
-- {stored}: one of the two above.
SELECT stored.* FROM ({stored}) AS stored
JOIN unnest(%(series)s::INTEGER[]) WITH ORDINALITY AS asked (series, place) USING (series)
ORDER BY time, place
LIMIT %(limit)s

-- name: shown_hours
-- {buckets}: hours; -> the columns of reading.HOUR_KINDS.
SELECT series, time, count, sum, min, max, m2, bit_count(minutes::BIT(64))::INTEGER, median, p95, p99, approximate
FROM ({buckets}) AS buckets

-- name: shown_days
SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate FROM ({buckets}) AS buckets

-- name: shown_days_with_grid
SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid
FROM ({buckets}) AS buckets

-- name: computed
-- {aggregate}: hour_aggregate or day_aggregate.
SELECT *, false AS approximate FROM ({aggregate}) AS made

-- name: summary_from_raw
SELECT
    series, count, sum, min, max, m2, active_minutes, active_periods,
    doubled(halves[1]), doubled(halves[2]), doubled(halves[3]), false
FROM (
    SELECT
        series,
        {moments},
        count(DISTINCT date_trunc('minute', time AT TIME ZONE 'UTC'))::INTEGER AS active_minutes,
        count(DISTINCT date_trunc('hour', time AT TIME ZONE 'UTC'))::INTEGER AS active_periods,
        percentile_cont(%(hour)s::DOUBLE PRECISION[]) WITHIN GROUP (ORDER BY half(value)) AS halves
    FROM readings
    WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s
    GROUP BY series
) AS made

-- name: sealed_hours_of
-- Buckets of a sealed day, to be merged with new ones.
SELECT series, time, count, sum, min, max, m2, minutes, median, p95, p99, approximate FROM sealed_hourly
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: sealed_days_of
SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid FROM sealed_daily
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: export_hours
SELECT uuid, time, count, sum, min, max, m2, minutes, median, p95, p99, approximate
FROM sealed_hourly JOIN series ON series.id = sealed_hourly.series
WHERE time >= %(start)s AND time < %(end)s
ORDER BY series, time

-- name: export_days
SELECT uuid, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid
FROM sealed_daily JOIN series ON series.id = sealed_daily.series
WHERE time >= %(start)s AND time < %(end)s
ORDER BY series, time

-- name: unsealed_of
SELECT day FROM days WHERE day = ANY(%(days)s) AND NOT sealed

-- name: sizes
-- Statistics know nothing of what was just made; of that it is counted up to a thousand.
SELECT pg_database_size(current_database()), greatest(coalesce({estimate}, 0)::BIGINT, few), NOT EXISTS (SELECT FROM days)
FROM (SELECT count(*) AS few FROM (SELECT FROM readings LIMIT 1000) AS first) AS counted

-- name: estimate_plain
(SELECT sum(greatest(reltuples, 0)) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'telemetry.readings'::REGCLASS)

-- name: estimate_timescale
{extension}.approximate_row_count('telemetry.readings')
