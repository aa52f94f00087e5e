-- Statements of maintenance. `wanted` and `rebuilt` are Arrow tables registered for the statement; {dirty} is
-- hourly_dirty or daily_dirty, {rollup} one of the rollup tables.

-- name: roll_hours
INSERT INTO hourly BY NAME {aggregate} ORDER BY series, time

-- name: mark_day_dirty
-- A day is rolled up by marking all its sensors: the redoing of changed days then does it in bounded portions.
INSERT INTO daily_dirty SELECT DISTINCT series, make_timestamptz($day_us) FROM {day}

-- name: rows_end
SELECT coalesce(max(rowid), -1) + 1 FROM {table}

-- name: order_hours
-- Hours come a few at a time. With a day of them in order, those of one sensor are together.
INSERT INTO hourly FROM hourly
WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us) AND rowid < $rows_end
ORDER BY series, time

-- name: forget_unordered_hours
DELETE FROM hourly
WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us) AND rowid < $rows_end

-- name: first_dirty
SELECT min(series) FROM {dirty} WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us)

-- name: dirty_hours
SELECT DISTINCT series, (epoch_us(time) - $start_us) // 3600000000 AS hour FROM hourly_dirty
WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us) AND series % $slices = $slice

-- name: dirty_days
SELECT DISTINCT series FROM daily_dirty
WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us) AND series % $slices = $slice

-- name: forget_dirty
DELETE FROM {dirty}
WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us) AND series % $slices = $slice

-- name: count_between
SELECT count(*) FROM {table} WHERE time >= make_timestamptz($start_us) AND time < make_timestamptz($end_us)

-- name: forget_buckets
DELETE FROM {rollup} USING rebuilt
WHERE {rollup}.series = rebuilt.series AND {rollup}.time = rebuilt.time
    AND {rollup}.time >= make_timestamptz($start_us) AND {rollup}.time < make_timestamptz($end_us)

-- name: save_buckets
INSERT INTO {rollup} BY NAME FROM rebuilt ORDER BY series, time

-- name: count_buckets_before
SELECT count(*) FROM {rollup} WHERE time < make_timestamptz($before_us)

-- name: settle_buckets
INSERT INTO {rollup}_settled FROM {rollup} WHERE time < make_timestamptz($before_us) ORDER BY series, time

-- name: forget_settled_buckets
DELETE FROM {rollup} WHERE time < make_timestamptz($before_us)

-- name: first_row
SELECT min(rowid) FROM {day}

-- name: order_run
-- The times of every other sensor run backwards, so that they need no jump from the end of one sensor to the start of
-- the next: they are stored as differences, and a jump would take 37 bits for each of two thousand.
INSERT INTO {day} FROM {day} WHERE rowid >= $first AND rowid < $end
ORDER BY series, if(series % 2 = 0, epoch_us(time), -epoch_us(time))

-- name: forget_run
DELETE FROM {day} WHERE rowid >= $first AND rowid < $end

-- name: drop_day
DROP TABLE {day}

-- name: prune_batches
DELETE FROM batches WHERE written_us < $before_us

-- name: stored_buckets
SELECT stored.* FROM (FROM {rollup} UNION ALL FROM {rollup}_settled) AS stored SEMI JOIN wanted
ON stored.series = wanted.series AND stored.time = wanted.time
WHERE stored.time >= make_timestamptz($start_us) AND stored.time < make_timestamptz($end_us)

-- name: export_hourly
SELECT
    series.uuid AS sensor, stored.time, count, sum, min, max, m2, minutes::BIGINT AS minutes, median, p95, p99,
    approximate
FROM (FROM hourly UNION ALL FROM hourly_settled) AS stored JOIN series ON series.id = stored.series
WHERE stored.time >= make_timestamptz($start_us) AND stored.time < make_timestamptz($end_us)
    AND list_contains($days, CAST(floor(epoch_us(stored.time) / 86400000000) AS INTEGER))
ORDER BY sensor, stored.time

-- name: export_daily
SELECT
    series.uuid AS sensor, stored.time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid
FROM (FROM daily UNION ALL FROM daily_settled) AS stored JOIN series ON series.id = stored.series
WHERE stored.time >= make_timestamptz($start_us) AND stored.time < make_timestamptz($end_us)
    AND list_contains($days, CAST(floor(epoch_us(stored.time) / 86400000000) AS INTEGER))
ORDER BY sensor, stored.time
