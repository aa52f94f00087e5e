-- Statements of maintenance, which one process does at a time.

-- name: try_maintenance
SELECT pg_try_advisory_lock(7363282, 3)

-- name: end_maintenance
SELECT pg_advisory_unlock(7363282, 3)

-- name: gave_up_lately
-- A time further ahead than any pause is of a clock that was wrong.
SELECT coalesce({what}_after > %(now)s AND {what}_after <= %(longest)s, false) FROM marks

-- name: note_given_up
UPDATE marks SET {what}_after = %(after)s

-- name: limit_locks
SELECT set_config('lock_timeout', %(limit)s, true)

-- name: wait_for_writers
-- Writers hold it side by side (lock_writers) until their transactions end; new ones wait behind this for a moment.
SELECT pg_advisory_xact_lock(7363282, 1)

-- name: observe
-- The newest reading and the last write, from what the batches say; an hour back, for those that commit late. No time that
-- is still to come counts: it is of a clock that is, or was, ahead.
UPDATE marks SET
    newest = greatest(marks.newest, seen.newest),
    last_write = coalesce(greatest(seen.known, seen.last_write), %(now)s)
FROM (
    SELECT
        max(known.at) AS known,
        max(batches.newest) AS newest,
        max(batches.written_at) FILTER (WHERE batches.written_at <= %(now)s) AS last_write
    FROM batches, (SELECT CASE WHEN last_write > %(now)s THEN %(now)s ELSE last_write END AS at FROM marks) AS known
    WHERE batches.newest IS NOT NULL AND batches.written_at >= coalesce(known.at - INTERVAL '1 hour', '-infinity')
) AS seen
WHERE seen.newest > marks.newest OR seen.last_write > marks.last_write OR marks.last_write > %(now)s
    OR (marks.newest IS NULL AND seen.newest IS NOT NULL)

-- name: observe_days
-- The same of the days.
UPDATE days SET last_write = %(now)s WHERE last_write > %(now)s + INTERVAL '1 minute'

-- name: maintenance_state
SELECT
    (extract(epoch FROM marking_until) * 1000000)::BIGINT,
    (extract(epoch FROM rolled_until) * 1000000)::BIGINT,
    rolled_series,
    (extract(epoch FROM rolling_until) * 1000000)::BIGINT,
    (extract(epoch FROM newest) * 1000000)::BIGINT,
    (extract(epoch FROM last_write) * 1000000)::BIGINT,
    (SELECT max(id) FROM series)
FROM marks

-- name: next_day
SELECT min(day) FROM days WHERE NOT sealed AND day >= %(day)s

-- name: move_marking
UPDATE marks SET marking_until = %(until)s WHERE marking_until IS NULL OR marking_until < %(until)s

-- name: move_rolled
UPDATE marks SET rolled_until = %(until)s, rolled_series = 0, rolling_until = NULL

-- name: move_rolled_series
UPDATE marks SET rolled_series = %(upto)s, rolling_until = %(until)s

-- name: dirty_days
-- Days with changed hours that are rolled up, those that wait longest first; and whether it is time for each: for any at
-- all, and for it. Where nothing was written since the last time, it is time at once.
SELECT
    days.day,
    coalesce(marks.last_write <= marks.redone_at OR marks.redo_after <= %(now)s, true),
    coalesce(marks.last_write <= days.redone_at OR days.redone_at <= %(before)s, true)
FROM marks, days
-- One look into the index for each day, however many marks it has: the order is for the planner, which would read them all.
WHERE NOT sealed AND (
    SELECT time FROM dirty
    WHERE time >= to_timestamp(days.day * 86400.0)
        AND time < least(to_timestamp((days.day + 1) * 86400.0), marks.rolled_until)
    ORDER BY time LIMIT 1
) IS NOT NULL
ORDER BY days.redone_at NULLS FIRST, days.day

-- name: note_redone
WITH noted AS (UPDATE days SET redone_at = %(now)s WHERE day = %(day)s)
UPDATE marks SET redone_at = %(now)s, redo_after = %(after)s

-- name: dirty_of_day
-- The marks of the first sensors of a day.
SELECT id, series, (extract(epoch FROM time) * 1000000)::BIGINT FROM dirty
WHERE time >= %(start)s AND time < least(%(end)s, (SELECT rolled_until FROM marks)) AND series <= (
    SELECT max(series) FROM (
        SELECT DISTINCT series FROM dirty WHERE time >= %(start)s AND time < %(end)s ORDER BY series LIMIT %(limit)s
    ) AS first
)

-- name: create_taken
-- Marks of a day, remembered while what they mark is made anew: in the session, because they may be millions.
CREATE TEMPORARY TABLE IF NOT EXISTS taken (id BIGINT)

-- name: forget_taken
TRUNCATE taken

-- name: take_dirty
-- All marks of a day; the first and the last hour of them.
WITH marked AS (
    SELECT id, time FROM dirty
    WHERE time >= %(start)s AND time < least(%(end)s, (SELECT rolled_until FROM marks))
), noted AS (
    INSERT INTO taken SELECT id FROM marked
)
SELECT (extract(epoch FROM min(time)) * 1000000)::BIGINT, (extract(epoch FROM max(time)) * 1000000)::BIGINT FROM marked

-- name: forget_dirty_taken
DELETE FROM dirty USING taken WHERE dirty.id = taken.id

-- name: forget_dirty
DELETE FROM dirty WHERE id = ANY(%(ids)s)

-- name: any_dirty
SELECT EXISTS (SELECT FROM dirty WHERE time >= %(start)s AND time < %(end)s)

-- name: days_to_seal
SELECT day FROM days, marks
WHERE NOT sealed AND day <= %(last)s AND days.last_write <= %(quiet)s
    AND to_timestamp((day + 1) * 86400.0) <= marks.rolled_until
ORDER BY day

-- name: lock_days_out
-- Reads hold `days` until they end (lock_days_in); so no read finds a day gone that its snapshot still has.
LOCK TABLE days IN ACCESS EXCLUSIVE MODE

-- name: seal_hours
INSERT INTO sealed_hourly (series, time, count, sum, min, max, m2, minutes, median, p95, p99, approximate)
SELECT series, time, count, sum, min, max, m2, minutes, median, p95, p99, false FROM telemetry_hourly
WHERE time >= %(start)s AND time < %(end)s
ORDER BY series, time

-- name: seal_days
INSERT INTO sealed_daily (series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate, grid)
SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, false, grid FROM telemetry_daily
WHERE time >= %(start)s AND time < %(end)s
ORDER BY series, time

-- name: seal_day
UPDATE days SET sealed = true WHERE day = %(day)s AND NOT sealed

-- name: drop_day
SELECT drop_day(DATE '1970-01-01' + %(day)s)

-- name: prune_batches
DELETE FROM batches WHERE batch_id IN (
    SELECT batch_id FROM batches WHERE written_at < %(before)s LIMIT %(limit)s
)

-- name: refresh
-- Of TimescaleDB; not in a transaction.
CALL {extension}.refresh_continuous_aggregate('telemetry.{aggregate}', %(start)s::TIMESTAMPTZ, %(end)s::TIMESTAMPTZ)

-- name: refresh_all
-- Whatever the extension thinks has changed.
CALL {extension}.refresh_continuous_aggregate(
    'telemetry.{aggregate}', %(start)s::TIMESTAMPTZ, %(end)s::TIMESTAMPTZ, force => true
)

-- name: has_ranges
SELECT to_regclass('_timescaledb_catalog.continuous_aggs_materialization_ranges') IS NOT NULL

-- name: pending_ranges
-- What somebody else (a policy, or somebody by hand) is materializing at this moment, or left undone. A refresh skips it, so it may return
-- before that is in. The bounds are microseconds since 1970.
SELECT EXISTS (
    SELECT FROM _timescaledb_catalog.continuous_aggs_materialization_ranges AS range
    JOIN _timescaledb_catalog.continuous_agg AS aggregate ON aggregate.mat_hypertable_id = range.materialization_id
    WHERE aggregate.user_view_schema = 'telemetry' AND aggregate.user_view_name = %(aggregate)s
        AND range.lowest_modified_value < %(end_us)s AND range.greatest_modified_value >= %(start_us)s
)

-- name: twice
-- Two refreshes of one range at a time each delete what was there, and each insert.
SELECT EXISTS (
    SELECT FROM {aggregate} WHERE time >= %(start)s AND time < %(end)s GROUP BY series, time HAVING count(*) > 1
)

-- name: refresh_policies
SELECT aggregate.user_view_name
FROM timescaledb_information.jobs
JOIN _timescaledb_catalog.continuous_agg AS aggregate
    ON aggregate.mat_hypertable_id = (config ->> 'mat_hypertable_id')::INTEGER
WHERE proc_name = 'policy_refresh_continuous_aggregate' AND aggregate.user_view_schema = 'telemetry'
ORDER BY 1

-- name: shown_lately
-- A time that is still to come is of a clock that was wrong.
SELECT
    coalesce(hours_shown_at > %(hour)s AND hours_shown_at <= %(now)s, false),
    coalesce(days_shown_at > %(day)s AND days_shown_at <= %(now)s, false)
FROM marks

-- name: note_shown
UPDATE marks SET {period}s_shown_at = %(now)s

-- name: day_is_rolled
-- Or made for some of its sensors: of the others it is made later, from what is there then.
SELECT coalesce(greatest(rolled_until, rolling_until) >= %(end)s, false) FROM marks
