-- Tables of the embedded store. Days are numbers: whole UTC days since 1970-01-01.
-- Raw readings are in one table per day (create_day); everything else is here.

-- name: create_tables
-- One row: how far things are. Null marks: nothing was written yet. `version` counts the transactions.
CREATE TABLE IF NOT EXISTS marks (
    format_version INTEGER NOT NULL,
    version BIGINT NOT NULL,
    watermark_us BIGINT,
    last_write_us BIGINT,
    hourly_until_us BIGINT,
    daily_until_us BIGINT,
    hourly_settled_until_us BIGINT,
    daily_settled_until_us BIGINT
);
-- Small numbers stand for the sensors' uuids.
CREATE TABLE IF NOT EXISTS series (
    id INTEGER NOT NULL,
    uuid VARCHAR NOT NULL
);
-- state: open, closed (in order), sealed (raw dropped). sorted_rows: how many stand in runs in (sensor, time) order.
-- newest_us: greatest reading time; only readings up to it can be known already.
CREATE TABLE IF NOT EXISTS days (
    day INTEGER NOT NULL,
    state VARCHAR NOT NULL,
    row_count BIGINT NOT NULL,
    sorted_rows BIGINT NOT NULL,
    last_write_us BIGINT NOT NULL,
    newest_us BIGINT NOT NULL
);
-- Settled batches with their first counts, appended only (and pruned by age).
CREATE TABLE IF NOT EXISTS batches (
    batch_id VARCHAR NOT NULL,
    stored BIGINT NOT NULL,
    updated BIGINT NOT NULL,
    duplicate BIGINT NOT NULL,
    written_us BIGINT NOT NULL
);
-- Batches with staged readings, and the counts of those that are in.
CREATE TABLE IF NOT EXISTS unsettled (
    number BIGINT NOT NULL,
    batch_id VARCHAR NOT NULL,
    stored BIGINT NOT NULL,
    updated BIGINT NOT NULL,
    duplicate BIGINT NOT NULL,
    staged BIGINT NOT NULL
);
-- Late readings not merged yet; `sequence` is the order accepted, `batch` a number in unsettled.
CREATE TABLE IF NOT EXISTS late_stage (
    sequence BIGINT NOT NULL,
    batch BIGINT NOT NULL,
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    value DOUBLE,
    status VARCHAR,
    battery FLOAT,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage FLOAT
);
-- Buckets before hourly_until_us / daily_until_us that raw has overtaken; an entry may stand more than once.
CREATE TABLE IF NOT EXISTS hourly_dirty (series INTEGER NOT NULL, time TIMESTAMPTZ NOT NULL);
CREATE TABLE IF NOT EXISTS daily_dirty (series INTEGER NOT NULL, time TIMESTAMPTZ NOT NULL);
-- Rollups. `minutes` has one bit for each minute of the hour with a reading. New and redone buckets go to `hourly`;
-- when their days are closed they move to `hourly_settled` in (series, time) order, many at a time, where a month of
-- one sensor is five times faster to read. A bucket is in one of the two.
CREATE TABLE IF NOT EXISTS hourly (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    count BIGINT NOT NULL,
    sum DOUBLE,
    min DOUBLE,
    max DOUBLE,
    m2 DOUBLE,
    minutes UBIGINT NOT NULL,
    median DOUBLE,
    p95 DOUBLE,
    p99 DOUBLE,
    approximate BOOLEAN NOT NULL
);
CREATE TABLE IF NOT EXISTS hourly_settled AS FROM hourly LIMIT 0;
-- `grid` holds the percentiles at rollup.DAY_PROBABILITIES.
CREATE TABLE IF NOT EXISTS daily (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    count BIGINT NOT NULL,
    sum DOUBLE,
    min DOUBLE,
    max DOUBLE,
    m2 DOUBLE,
    active_minutes INTEGER NOT NULL,
    median DOUBLE,
    p95 DOUBLE,
    p99 DOUBLE,
    approximate BOOLEAN NOT NULL,
    grid FLOAT[]
);
CREATE TABLE IF NOT EXISTS daily_settled AS FROM daily LIMIT 0;
INSERT INTO marks SELECT $format_version, 0, NULL, NULL, NULL, NULL, NULL, NULL WHERE NOT EXISTS (FROM marks);

-- name: create_day
-- No primary key: its index would cost more than the check by join, and six times the disk.
CREATE TABLE {day} (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    value DOUBLE,
    status VARCHAR,
    battery FLOAT,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage FLOAT
)

-- name: load_marks
SELECT
    format_version, version, watermark_us, last_write_us, hourly_until_us, daily_until_us,
    hourly_settled_until_us, daily_settled_until_us
FROM marks

-- name: load_series
SELECT uuid, id FROM series

-- name: load_days
SELECT day, state, row_count, sorted_rows, last_write_us, newest_us FROM days

-- name: load_unsettled
SELECT number, batch_id, stored, updated, duplicate, staged FROM unsettled ORDER BY number

-- name: load_last_sequence
SELECT max(sequence) FROM late_stage

-- name: load_hourly_dirty
SELECT CAST(floor(epoch_us(time) / 86400000000) AS INTEGER) AS day, count(*) FROM hourly_dirty GROUP BY day

-- name: load_daily_dirty
SELECT CAST(floor(epoch_us(time) / 86400000000) AS INTEGER) AS day, count(*) FROM daily_dirty GROUP BY day

-- name: save_marks
UPDATE marks SET
    watermark_us = $watermark_us,
    last_write_us = $last_write_us,
    hourly_until_us = $hourly_until_us,
    daily_until_us = $daily_until_us,
    hourly_settled_until_us = $hourly_settled_until_us,
    daily_settled_until_us = $daily_settled_until_us,
    version = $version

-- name: save_series
INSERT INTO series SELECT id, uuid FROM new_series

-- name: forget_days
DELETE FROM days WHERE day IN (SELECT unnest($days))

-- name: save_day
INSERT INTO days VALUES ($day, $state, $row_count, $sorted_rows, $last_write_us, $newest_us)

-- name: forget_unsettled
DELETE FROM unsettled WHERE number IN (SELECT unnest($numbers))

-- name: save_unsettled
INSERT INTO unsettled SELECT number, batch_id, stored, updated, duplicate, staged FROM new_unsettled
