-- The schema `telemetry` in PostgreSQL, and what TimescaleDB adds. Run by tsdb/postgres/migration.py, in order.

-- name: r0001
CREATE SCHEMA IF NOT EXISTS telemetry;

-- One row: how far things are. Hours before `marking_until` are marked when readings are written into them; hours
-- before `rolled_until` are stored and, unless they are marked, true. Null: nothing is rolled up yet.
CREATE TABLE telemetry.marks (
    one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    revision TEXT NOT NULL,
    timescale BOOLEAN NOT NULL,
    marking_until TIMESTAMPTZ,
    rolled_until TIMESTAMPTZ,
    refreshed_at TIMESTAMPTZ
);

-- Small numbers stand for the sensors' uuids.
CREATE TABLE telemetry.series (
    id INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uuid UUID NOT NULL UNIQUE
);

-- UTC days since 1970-01-01 that have, or had, readings. Of a sealed day only the buckets are kept.
CREATE TABLE telemetry.days (
    day INTEGER PRIMARY KEY,
    sealed BOOLEAN NOT NULL DEFAULT false,
    last_write TIMESTAMPTZ NOT NULL
);

-- Settled batches with their first counts.
CREATE TABLE telemetry.batches (
    batch_id TEXT PRIMARY KEY,
    stored BIGINT NOT NULL DEFAULT 0,
    updated BIGINT NOT NULL DEFAULT 0,
    duplicate BIGINT NOT NULL DEFAULT 0,
    written_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX batches_written_at ON telemetry.batches USING brin (written_at);

-- Stored hours that readings have changed since. Appended only; an hour may stand more than once.
CREATE TABLE telemetry.dirty (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL
);
CREATE INDEX dirty_series_time ON telemetry.dirty (series, time);

-- Buckets that are kept here: with TimescaleDB those of sealed days alone. `minutes` has one bit for each minute of
-- the hour with a reading; `grid` holds the percentiles at rollup.DAY_PROBABILITIES.
CREATE TABLE telemetry.hourly (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    count BIGINT NOT NULL,
    sum DOUBLE PRECISION,
    min DOUBLE PRECISION,
    max DOUBLE PRECISION,
    m2 DOUBLE PRECISION,
    minutes BIGINT NOT NULL,
    median DOUBLE PRECISION,
    p95 DOUBLE PRECISION,
    p99 DOUBLE PRECISION,
    approximate BOOLEAN NOT NULL,
    PRIMARY KEY (series, time)
);
CREATE INDEX hourly_time ON telemetry.hourly USING brin (time);
CREATE TABLE telemetry.daily (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    count BIGINT NOT NULL,
    sum DOUBLE PRECISION,
    min DOUBLE PRECISION,
    max DOUBLE PRECISION,
    m2 DOUBLE PRECISION,
    active_minutes INTEGER NOT NULL,
    median DOUBLE PRECISION,
    p95 DOUBLE PRECISION,
    p99 DOUBLE PRECISION,
    approximate BOOLEAN NOT NULL,
    grid REAL[],
    PRIMARY KEY (series, time)
);
CREATE INDEX daily_time ON telemetry.daily USING brin (time);

-- name: readings_plain
-- One partition a day, made by the first writer of that day.
CREATE TABLE telemetry.readings (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    value DOUBLE PRECISION,
    status TEXT,
    battery REAL,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage REAL,
    PRIMARY KEY (series, time)
) PARTITION BY RANGE (time);

-- name: readings_timescale
-- {schema} is where the extension lives.
CREATE TABLE telemetry.readings (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    value DOUBLE PRECISION,
    status TEXT,
    battery REAL,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage REAL
);
SELECT {schema}.create_hypertable(
    'telemetry.readings', {schema}.by_range('time', INTERVAL '1 day'), create_default_indexes => false
);
CREATE UNIQUE INDEX readings_series_time ON telemetry.readings (series, time);
ALTER TABLE telemetry.readings SET (
    timescaledb.compress, timescaledb.compress_segmentby = 'series', timescaledb.compress_orderby = 'time'
);

-- name: hourly_aggregate
-- A continuous aggregate. Values that a double cannot add up or square are left out and flagged, so that one reading
-- cannot stop its refresh: such buckets are computed from raw (tsdb/postgres/reading.py).
CREATE MATERIALIZED VIEW telemetry.telemetry_hourly
WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT
    series,
    {schema}.time_bucket(INTERVAL '1 hour', time) AS bucket,
    count(value) AS count,
    sum(value) FILTER (WHERE abs(value) < 1e150) AS sum,
    min(value) AS min,
    max(value) AS max,
    regr_sxx(value, value) FILTER (WHERE abs(value) < 1e150) AS m2,
    bit_or(1::BIGINT << extract(minute FROM time AT TIME ZONE 'UTC')::INTEGER) AS minutes,
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY value) AS percentiles,
    coalesce(max(abs(value)) >= 1e150, false) AS extreme
FROM telemetry.readings
GROUP BY series, bucket
WITH NO DATA;

-- name: daily_aggregate
CREATE MATERIALIZED VIEW telemetry.telemetry_daily
WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT
    series,
    {schema}.time_bucket(INTERVAL '1 day', time) AS bucket,
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
    percentile_cont({grid}) WITHIN GROUP (ORDER BY value) AS percentiles,
    coalesce(max(abs(value)) >= 1e150, false) AS extreme
FROM telemetry.readings
GROUP BY series, bucket
WITH NO DATA;

-- name: policies
-- Names and rhythm of the older program. A refresh never reaches back to where raw may be gone: {start} is within what
-- is kept. Raw is dropped by the worker, and only once a day is sealed; so there is no retention policy.
SELECT {schema}.add_continuous_aggregate_policy(
    'telemetry.telemetry_hourly', start_offset => INTERVAL '{start} days', end_offset => INTERVAL '1 hour',
    schedule_interval => INTERVAL '30 minutes'
);
SELECT {schema}.add_continuous_aggregate_policy(
    'telemetry.telemetry_daily', start_offset => INTERVAL '{start} days', end_offset => INTERVAL '1 day',
    schedule_interval => INTERVAL '2 hours'
);
SELECT {schema}.add_compression_policy('telemetry.readings', compress_after => INTERVAL '4 days');
