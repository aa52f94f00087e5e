-- Aggregates of raw readings: the definitions of module rollup in SQL. {source} is one of the selections below or a
-- table, all of one day; $day_us is that day's start (so that integer division never sees a negative number).

-- name: hour_aggregate
SELECT
    series, make_timestamptz($day_us + hour * 3600000000) AS time, count, sum, min, max, m2, minutes,
    percentiles[1] AS median,
    percentiles[2] AS p95,
    percentiles[3] AS p99,
    false AS approximate
FROM (
    SELECT
        series,
        hour,
        count(value) AS count,
        if(isfinite(fsum(value)), fsum(value), NULL) AS sum,
        min(value) AS min,
        max(value) AS max,
        if(isfinite(var_pop(value)), var_pop(value) * count(value), NULL) AS m2,
        bit_or(1::UBIGINT << minute::UBIGINT) AS minutes,
        quantile_cont(value, [0.5, 0.95, 0.99]) AS percentiles
    FROM (
        SELECT
            series,
            value,
            (epoch_us(time) - $day_us) // 3600000000 AS hour,
            (epoch_us(time) - $day_us) // 60000000 % 60 AS minute
        FROM ({source})
    )
    GROUP BY series, hour
)

-- name: day_aggregate
-- $median, $p95 and $p99 are positions in $grid. Single precision cannot hold every double, hence the bounds.
SELECT
    series, make_timestamptz($day_us) AS time, count, sum, min, max, m2, active_minutes,
    percentiles[$median] AS median,
    percentiles[$p95] AS p95,
    percentiles[$p99] AS p99,
    false AS approximate,
    list_transform(percentiles, lambda v: greatest(least(v, 3.4e38), -3.4e38)::FLOAT) AS grid
FROM (
    SELECT
        series,
        count(value) AS count,
        if(isfinite(fsum(value)), fsum(value), NULL) AS sum,
        min(value) AS min,
        max(value) AS max,
        if(isfinite(var_pop(value)), var_pop(value) * count(value), NULL) AS m2,
        bit_count(bitstring_agg((epoch_us(time) - $day_us) // 60000000, 0, 1439))::INTEGER AS active_minutes,
        quantile_cont(value, $grid) AS percentiles
    FROM ({source})
    GROUP BY series
)

-- name: readings_of_slice
-- One slice of the sensors: exact percentiles of all of them at once may not fit in memory.
SELECT series, time, value FROM {day}
WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us) AND series % $slices = $slice

-- name: readings_of_hours
-- `wanted` is a registered Arrow table.
SELECT raw.series, raw.time, raw.value FROM {day} AS raw SEMI JOIN wanted
ON raw.series = wanted.series AND (epoch_us(raw.time) - $day_us) // 3600000000 = wanted.hour
WHERE raw.time >= make_timestamptz($start_us) AND raw.time < make_timestamptz($end_us)

-- name: readings_of_wanted
-- `wanted` is a registered Arrow table.
SELECT raw.series, raw.time, raw.value FROM {day} AS raw SEMI JOIN wanted ON raw.series = wanted.series
WHERE raw.time >= make_timestamptz($start_us) AND raw.time < make_timestamptz($end_us)
