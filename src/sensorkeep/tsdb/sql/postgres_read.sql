-- Statements of the reads. %(series)s lists the numbers of the sensors asked for, in their order.

-- name: view
-- What a read must know, in one row. A day stands here from its first reading on.
SELECT
    (SELECT (extract(epoch FROM rolled_until) * 1e6)::BIGINT FROM marks),
    (SELECT array_agg(day ORDER BY day) FROM days WHERE day >= %(first)s AND day <= %(last)s AND NOT sealed),
    (SELECT array_agg(day ORDER BY day) FROM days WHERE day >= %(first)s AND day <= %(last)s AND sealed)

-- name: first_readings
-- One day. At %(after)s itself only the sensors after %(place)s.
SELECT array_position(%(series)s::INTEGER[], series) - 1 AS place, (extract(epoch FROM time) * 1e6)::BIGINT AS time_us,
    value, status, battery, rssi, lqi, battery_voltage
FROM readings
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s
    AND (time > %(after)s OR array_position(%(series)s::INTEGER[], series) > %(place)s + 1)
ORDER BY time, place
LIMIT %(limit)s

-- name: points
SELECT series, time, coalesce(value, 'NaN') FROM readings
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: readings_of_sensors
SELECT series, time, value FROM readings
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: dirty_of_sensors
SELECT DISTINCT (extract(epoch FROM time) * 1e6)::BIGINT FROM dirty
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: stored_hours
SELECT series, time, count, coalesce(sum, 'NaN'), coalesce(min, 'NaN'), coalesce(max, 'NaN'), coalesce(m2, 'NaN'),
    bit_count(minutes::BIT(64))::INTEGER, coalesce(median, 'NaN'), coalesce(p95, 'NaN'), coalesce(p99, 'NaN'),
    approximate, false
FROM hourly WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s
ORDER BY time, array_position(%(series)s::INTEGER[], series) LIMIT %(limit)s

-- name: stored_days
SELECT series, time, count, coalesce(sum, 'NaN'), coalesce(min, 'NaN'), coalesce(max, 'NaN'), coalesce(m2, 'NaN'),
    active_minutes, coalesce(median, 'NaN'), coalesce(p95, 'NaN'), coalesce(p99, 'NaN'), approximate, false
FROM daily WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s
ORDER BY time, array_position(%(series)s::INTEGER[], series) LIMIT %(limit)s

-- name: made_hours
-- {source}: an aggregate of the form of hour_aggregate, or the continuous one between bounds.
SELECT series, bucket, count, coalesce(sum, 'NaN'), coalesce(min, 'NaN'), coalesce(max, 'NaN'), coalesce(m2, 'NaN'),
    bit_count(minutes::BIT(64))::INTEGER, coalesce(percentiles[1], 'NaN'), coalesce(percentiles[2], 'NaN'),
    coalesce(percentiles[3], 'NaN'), false, extreme
FROM ({source}) AS made
ORDER BY bucket, array_position(%(series)s::INTEGER[], series) LIMIT %(limit)s

-- name: made_days
SELECT series, bucket, count, coalesce(sum, 'NaN'), coalesce(min, 'NaN'), coalesce(max, 'NaN'), coalesce(m2, 'NaN'),
    bit_count(minutes)::INTEGER, coalesce(percentiles[%(median)s], 'NaN'), coalesce(percentiles[%(p95)s], 'NaN'),
    coalesce(percentiles[%(p99)s], 'NaN'), false, extreme
FROM ({source}) AS made
ORDER BY bucket, array_position(%(series)s::INTEGER[], series) LIMIT %(limit)s

-- name: continuous_hours
SELECT * FROM telemetry_hourly WHERE series = ANY(%(series)s) AND bucket >= %(start)s AND bucket < %(end)s

-- name: continuous_days
SELECT * FROM telemetry_daily WHERE series = ANY(%(series)s) AND bucket >= %(start)s AND bucket < %(end)s

-- name: stored_grids
SELECT series, (extract(epoch FROM time) * 1e6)::BIGINT, grid FROM daily
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s AND grid IS NOT NULL

-- name: made_grids
SELECT series, (extract(epoch FROM bucket) * 1e6)::BIGINT, percentiles FROM ({source}) AS made
WHERE percentiles IS NOT NULL

-- name: summary_from_raw
SELECT series, count(value), coalesce(sum(value) FILTER (WHERE abs(value) < 1e150), 'NaN'),
    coalesce(min(value), 'NaN'), coalesce(max(value), 'NaN'),
    coalesce(regr_sxx(value, value) FILTER (WHERE abs(value) < 1e150), 'NaN'),
    count(DISTINCT date_bin(INTERVAL '1 minute', time, TIMESTAMPTZ '2000-01-01 00:00:00+00'))::INTEGER,
    count(DISTINCT date_bin(INTERVAL '1 hour', time, TIMESTAMPTZ '2000-01-01 00:00:00+00'))::INTEGER,
    coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY value), 'NaN'),
    coalesce(percentile_cont(0.95) WITHIN GROUP (ORDER BY value), 'NaN'),
    coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY value), 'NaN'),
    coalesce(max(abs(value)) >= 1e150, false)
FROM readings
WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s
GROUP BY series

-- name: hours_of_day
SELECT series, (extract(epoch FROM time) * 1e6)::BIGINT, count, sum, min, max, m2, minutes, median, p95, p99, approximate
FROM hourly WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: days_of_day
SELECT series, (extract(epoch FROM time) * 1e6)::BIGINT, count, sum, min, max, m2, active_minutes, median, p95, p99,
    approximate, grid
FROM daily WHERE series = ANY(%(series)s) AND time >= %(start)s AND time < %(end)s

-- name: sealed_hours
SELECT series.uuid::TEXT, (extract(epoch FROM time) * 1e6)::BIGINT, count, sum, min, max, m2, median, p95, p99,
    approximate, minutes
FROM hourly JOIN series ON series.id = hourly.series
WHERE time >= %(start)s AND time < %(end)s
    AND date_bin(INTERVAL '1 day', time, TIMESTAMPTZ '2000-01-01 00:00:00+00') = ANY(%(days)s)
ORDER BY hourly.series, time

-- name: sealed_days
SELECT series.uuid::TEXT, (extract(epoch FROM time) * 1e6)::BIGINT, count, sum, min, max, m2, median, p95, p99,
    approximate, active_minutes, grid
FROM daily JOIN series ON series.id = daily.series
WHERE time >= %(start)s AND time < %(end)s
    AND date_bin(INTERVAL '1 day', time, TIMESTAMPTZ '2000-01-01 00:00:00+00') = ANY(%(days)s)
ORDER BY daily.series, time

-- name: days_sealed
SELECT day FROM days WHERE sealed AND day >= %(first)s AND day <= %(last)s ORDER BY day

-- name: sizes
-- Tables that were never analysed have no estimate yet: of those it is known whether they are empty.
SELECT pg_database_size(current_database()), CASE WHEN estimate > 0 THEN estimate ELSE few END,
    NOT EXISTS (SELECT FROM telemetry.days)
FROM (SELECT coalesce({estimate}, 0)::BIGINT AS estimate,
    (SELECT count(*) FROM (SELECT FROM readings LIMIT 1000) AS sample) AS few) AS both_ways

-- name: estimate_plain
(SELECT sum(greatest(reltuples, 0)) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'telemetry.readings'::REGCLASS)

-- name: estimate_timescale
{schema}.approximate_row_count('telemetry.readings')
