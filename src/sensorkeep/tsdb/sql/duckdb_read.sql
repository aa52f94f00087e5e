-- Statements of the reads. $series lists the numbers of the sensors asked for; {source} is one of the selections.

-- name: snapshot_version
-- The first statement of a read: it fixes the snapshot, and tells whether it is the one that memory knows.
SELECT version FROM marks

-- name: of_few
-- Rows of the sensors asked for. This is planned faster than a join.
(FROM {table} WHERE list_contains($series, series))

-- name: of_few_placed
-- The same, with the place of each sensor in $series.
(SELECT *, list_position($series, series) AS place FROM {table} WHERE list_contains($series, series))

-- name: of_many
(SELECT * FROM {table}
JOIN (SELECT unnest($series) AS series, generate_subscripts($series, 1) AS place) USING (series))

-- name: readings_of_sensors
-- {span} numbers the parts of days that are selected together; their bounds are parameters.
SELECT * FROM {source} AS source
WHERE source.time >= make_timestamptz($start_{span}) AND source.time < make_timestamptz($end_{span})

-- name: instants_of_sensors
SELECT series, time, value FROM {source} AS source
WHERE source.time >= make_timestamptz($start_{span}) AND source.time < make_timestamptz($end_{span})

-- name: values_of_sensors
SELECT series, epoch_us(source.time) AS time, value FROM {source} AS source
WHERE source.time >= make_timestamptz($start_{span}) AND source.time < make_timestamptz($end_{span})

-- name: limited
{source} LIMIT $limit

-- name: first_readings
-- At $first_us itself only the sensors after $after_place.
SELECT series, time, value, status, battery, rssi, lqi, battery_voltage FROM ({source})
WHERE time > make_timestamptz($first_us) OR place > $after_place
ORDER BY time, place
LIMIT $limit

-- name: hourly_buckets
SELECT
    series, epoch_us(source.time) AS time, count, sum, min, max, m2, bit_count(minutes)::INTEGER AS active_minutes,
    median, p95, p99, approximate
FROM {source} AS source
WHERE source.time >= make_timestamptz($start_us) AND source.time < make_timestamptz($end_us)

-- name: daily_buckets
SELECT series, epoch_us(source.time) AS time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate
FROM {source} AS source
WHERE source.time >= make_timestamptz($start_us) AND source.time < make_timestamptz($end_us)

-- name: daily_buckets_with_grid
SELECT series, epoch_us(source.time) AS time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid
FROM {source} AS source
WHERE source.time >= make_timestamptz($start_us) AND source.time < make_timestamptz($end_us)

-- name: first_buckets
-- {buckets}: one of the three above.
{buckets} ORDER BY source.time, place LIMIT $limit

-- name: dirty_of_sensors
-- Of each day the first and the last bucket.
SELECT
    CAST(floor(epoch_us(source.time) / 86400000000) AS INTEGER) AS day,
    epoch_us(min(source.time)) AS first,
    epoch_us(max(source.time)) AS last
FROM {source} AS source
WHERE source.time >= make_timestamptz($start_us) AND source.time < make_timestamptz($end_us)
GROUP BY day

-- name: hours_from_raw
SELECT
    series, epoch_us(time) AS time, count, sum, min, max, m2, bit_count(minutes)::INTEGER AS active_minutes,
    median, p95, p99, approximate
FROM ({aggregate})

-- name: days_from_raw
SELECT series, epoch_us(time) AS time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid
FROM ({aggregate})

-- name: summary_from_raw
-- {source}: a union of values_of_sensors; $origin_us is the start of the first day.
SELECT
    series, count, sum, min, max, m2, active_minutes, active_periods,
    percentiles[1] AS median,
    percentiles[2] AS p95,
    percentiles[3] AS p99,
    false AS approximate
FROM (
    SELECT
        series,
        count(value) AS count,
        if(isfinite(fsum(value)), fsum(value), NULL) AS sum,
        min(value) AS min,
        max(value) AS max,
        if(isfinite(var_pop(value)), var_pop(value) * count(value), NULL) AS m2,
        count(DISTINCT (time - $origin_us) // 60000000)::INTEGER AS active_minutes,
        count(DISTINCT (time - $origin_us) // 3600000000)::INTEGER AS active_periods,
        quantile_cont(value, [0.5, 0.95, 0.99]) AS percentiles
    FROM ({source})
    GROUP BY series
)
