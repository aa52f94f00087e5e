-- The schema `telemetry` in PostgreSQL, step by step (tsdb/postgres/migration.py). A step that was released is never
-- changed: what is to change comes in a new one. r<number>_plain and r<number>_timescale follow r<number>.

-- name: r0001
CREATE SCHEMA IF NOT EXISTS telemetry;

-- One row: how far things are. Hours before `marking_until` are marked when readings are written into them; hours
-- before `rolled_until`, and days that end before it, are stored and, unless they are marked, true. A step of rolling up
-- may take several transactions: from `rolled_until` to `rolling_until`, the buckets of series up to `rolled_series` are
-- made. `newest` is the time of the newest reading, `last_write` when one came; they run a little behind. `redone_at` is
-- when changed buckets were last made anew, `redo_after` when it is time for some more; `hours_shown_at` and
-- `days_shown_at` are when TimescaleDB's aggregates were last refreshed up to the present; `move_after` and `seal_after`
-- when it is time to try again to move `marking_until` and to seal a day, which gave up. Null: there is nothing yet.
CREATE TABLE telemetry.marks (
    one BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    revision TEXT NOT NULL,
    timescale BOOLEAN NOT NULL,
    marking_until TIMESTAMPTZ,
    rolled_until TIMESTAMPTZ,
    rolled_series INTEGER NOT NULL DEFAULT 0,
    rolling_until TIMESTAMPTZ,
    newest TIMESTAMPTZ,
    last_write TIMESTAMPTZ,
    redone_at TIMESTAMPTZ,
    redo_after TIMESTAMPTZ,
    hours_shown_at TIMESTAMPTZ,
    days_shown_at TIMESTAMPTZ,
    move_after TIMESTAMPTZ,
    seal_after TIMESTAMPTZ
);

-- Small numbers stand for the sensors' uuids.
CREATE TABLE telemetry.series (
    id INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uuid TEXT COLLATE "C" NOT NULL UNIQUE
);

-- UTC days since 1970-01-01 that have, or had, readings. Of a sealed day only the buckets are kept. `last_write` is exact
-- to the minute, and only of days that may soon be sealed; `redone_at` is when changed buckets were last made anew.
CREATE TABLE telemetry.days (
    day INTEGER PRIMARY KEY,
    sealed BOOLEAN NOT NULL DEFAULT false,
    last_write TIMESTAMPTZ NOT NULL,
    redone_at TIMESTAMPTZ
);

-- Batches with their first counts. `until_day` is set while a batch of very many days is written in portions: what it
-- has of earlier days is in and counted. `newest` is the newest reading that came with it.
CREATE TABLE telemetry.batches (
    batch_id TEXT COLLATE "C" PRIMARY KEY,
    stored BIGINT NOT NULL DEFAULT 0,
    updated BIGINT NOT NULL DEFAULT 0,
    duplicate BIGINT NOT NULL DEFAULT 0,
    until_day INTEGER,
    written_at TIMESTAMPTZ NOT NULL,
    newest TIMESTAMPTZ
);
CREATE INDEX batches_written_at ON telemetry.batches USING brin (written_at) WITH (pages_per_range = 16);

-- Hours before `marking_until` that readings have changed since. Appended only; an hour may stand more than once.
CREATE TABLE telemetry.dirty (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL
);
CREATE INDEX dirty_series_time ON telemetry.dirty (series, time);
CREATE INDEX dirty_time ON telemetry.dirty (time);

-- Buckets of sealed days: what is left when the raw is gone. `minutes` has one bit for each minute of the hour with a
-- reading; `grid` holds the percentiles at rollup.DAY_PROBABILITIES.
CREATE TABLE telemetry.sealed_hourly (
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
CREATE TABLE telemetry.sealed_daily (
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

-- What the aggregates need that PostgreSQL does not have. Its sums raise an error where a double overflows, and one such
-- reading would stop every roll-up of its hour for ever. So values beyond 1e145 ("huge"; below it, squares of sums of
-- a thousand million of them fit) are added up apart, as exact decimals.

-- Count, sum and sum of squared deviations (Youngs and Cramer, 1971) at once: the state of PostgreSQL's own var_pop.
CREATE AGGREGATE telemetry.moments (DOUBLE PRECISION) (
    SFUNC = float8_accum, STYPE = DOUBLE PRECISION[], COMBINEFUNC = float8_combine, INITCOND = '{0,0,0}', PARALLEL = SAFE
);

-- A decimal as a double; null where no double can hold it.
CREATE FUNCTION telemetry.as_double(exact NUMERIC) RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN abs(exact) < 1e-300 THEN 0
        WHEN abs(exact) <= 1.7976931348623157e308 THEN exact::DOUBLE PRECISION
    END
$$;

-- The sum of a bucket, from the moments of its plain values and the sum of the huge ones.
CREATE FUNCTION telemetry.total(plain DOUBLE PRECISION[], huge_sum NUMERIC) RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN huge_sum IS NOT NULL THEN telemetry.as_double(plain[2]::TEXT::NUMERIC + huge_sum)
        WHEN plain[1] > 0 THEN plain[2]
    END
$$;

-- The sum of squared deviations of a bucket. With huge values: sum of squares - square of the sum / count, in decimals.
CREATE FUNCTION telemetry.deviations(plain DOUBLE PRECISION[], huge_sum NUMERIC, huge_squares NUMERIC, total_count BIGINT)
RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN huge_sum IS NULL THEN CASE WHEN plain[1] > 0 THEN plain[3] END
        ELSE telemetry.as_double(greatest(
            0,
            plain[3]::TEXT::NUMERIC + huge_squares
            + CASE WHEN plain[1] > 0 THEN plain[2]::TEXT::NUMERIC * plain[2]::TEXT::NUMERIC / plain[1]::NUMERIC ELSE 0 END
            - (plain[2]::TEXT::NUMERIC + huge_sum) * (plain[2]::TEXT::NUMERIC + huge_sum) / total_count
        ))
    END
$$;

-- Percentiles are taken of halves, because the difference of two doubles may overflow and that of two halves cannot.
-- Halving is exact but for values below 1e-307, and refused for the smallest of all.
CREATE FUNCTION telemetry.half(value DOUBLE PRECISION) RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN abs(value) < 1e-323 THEN 0 ELSE value * 0.5 END
$$;
CREATE FUNCTION telemetry.doubled(half DOUBLE PRECISION) RETURNS DOUBLE PRECISION
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN abs(half) < 8.988465674311579e307 THEN half * 2
        WHEN half > 0 THEN 1.7976931348623157e308
        WHEN half < 0 THEN -1.7976931348623157e308
    END
$$;

-- The picture of a day's distribution, in single precision, which cannot hold every double.
CREATE FUNCTION telemetry.picture(halves DOUBLE PRECISION[]) RETURNS REAL[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(
        CASE
            WHEN abs(half) < 1e-44 THEN 0
            WHEN abs(half) < 1.7e38 THEN (half * 2)::REAL
            WHEN half > 0 THEN 3.4e38
            ELSE -3.4e38
        END
        ORDER BY place
    )
    FROM unnest(halves) WITH ORDINALITY AS grid (half, place)
$$;

-- name: r0001_plain
-- One partition a day, made by the first writer of that day. `accepted_us` (microseconds since the epoch) is when the
-- reading was accepted: of two contents of one identity the one accepted later stays, whichever is written first.
CREATE TABLE telemetry.readings (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    value DOUBLE PRECISION,
    status TEXT,
    battery REAL,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage REAL,
    accepted_us BIGINT NOT NULL,
    PRIMARY KEY (series, time)
) PARTITION BY RANGE (time);
CREATE INDEX readings_time ON telemetry.readings USING brin (time) WITH (pages_per_range = 32);

-- Made beside the table and then attached: that needs no lock that stops the writers of other days.
CREATE FUNCTION telemetry.make_day(day DATE) RETURNS VOID
LANGUAGE plpgsql AS $$
DECLARE
    name TEXT := 'readings_' || to_char(day, 'YYYYMMDD');
    first TIMESTAMPTZ := day::TIMESTAMP AT TIME ZONE 'UTC';
    after TIMESTAMPTZ := (day + 1)::TIMESTAMP AT TIME ZONE 'UTC';
BEGIN
    IF to_regclass('telemetry.' || name) IS NULL THEN
        EXECUTE format('CREATE TABLE telemetry.%I (LIKE telemetry.readings INCLUDING ALL)', name);
        EXECUTE format(
            'ALTER TABLE telemetry.readings ATTACH PARTITION telemetry.%I FOR VALUES FROM (%L) TO (%L)', name, first, after
        );
    END IF;
END
$$;

-- Buckets of days that have their raw.
CREATE TABLE telemetry.telemetry_hourly (
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
    PRIMARY KEY (series, time)
);
CREATE INDEX telemetry_hourly_time ON telemetry.telemetry_hourly USING brin (time);
CREATE TABLE telemetry.telemetry_daily (
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
    grid REAL[],
    PRIMARY KEY (series, time)
);
CREATE INDEX telemetry_daily_time ON telemetry.telemetry_daily USING brin (time);

-- Drop the raw of a day, and its buckets where they were kept with it.
CREATE FUNCTION telemetry.drop_day(day DATE) RETURNS VOID
LANGUAGE plpgsql AS $$
DECLARE
    first TIMESTAMPTZ := day::TIMESTAMP AT TIME ZONE 'UTC';
    after TIMESTAMPTZ := (day + 1)::TIMESTAMP AT TIME ZONE 'UTC';
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS telemetry.%I', 'readings_' || to_char(day, 'YYYYMMDD'));
    DELETE FROM telemetry.telemetry_hourly WHERE time >= first AND time < after;
    DELETE FROM telemetry.telemetry_daily WHERE time >= first AND time < after;
END
$$;

-- name: r0001_timescale
-- {extension}: the schema that TimescaleDB is in. A chunk is a UTC day. For `accepted_us` see r0001_plain.
CREATE TABLE telemetry.readings (
    series INTEGER NOT NULL,
    time TIMESTAMPTZ NOT NULL,
    value DOUBLE PRECISION,
    status TEXT,
    battery REAL,
    rssi SMALLINT,
    lqi SMALLINT,
    battery_voltage REAL,
    accepted_us BIGINT NOT NULL
);
SELECT {extension}.create_hypertable(
    'telemetry.readings', {extension}.by_range('time', INTERVAL '1 day'), create_default_indexes => false
);
CREATE UNIQUE INDEX readings_series_time ON telemetry.readings (series, time);
CREATE INDEX readings_time ON telemetry.readings USING brin (time) WITH (pages_per_range = 32);
ALTER TABLE telemetry.readings SET (
    timescaledb.compress, timescaledb.compress_segmentby = 'series', timescaledb.compress_orderby = 'time'
);

-- The extension makes a chunk when the first reading of its day comes.
CREATE FUNCTION telemetry.make_day(day DATE) RETURNS VOID LANGUAGE sql AS $$ SELECT $$;

-- Buckets of days that have their raw: the same columns, and the same expressions, as postgres_rollup.sql makes. What
-- is not materialized yet, or was changed since, is planned by the reads (tsdb/postgres/reading.py); so the extension's
-- own union with raw is off.
CREATE MATERIALIZED VIEW telemetry.telemetry_hourly
WITH (timescaledb.continuous, timescaledb.materialized_only = true, timescaledb.chunk_interval = '1 day') AS
SELECT
    series,
    {extension}.time_bucket(INTERVAL '1 hour', time) AS time,
    count(value) AS count,
    telemetry.total(
        telemetry.moments(value) FILTER (WHERE value BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145)
    ) AS sum,
    min(value) AS min,
    max(value) AS max,
    telemetry.deviations(
        telemetry.moments(value) FILTER (WHERE value BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC * value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145),
        count(value)
    ) AS m2,
    bit_or(1::BIGINT << date_part('minute', time AT TIME ZONE 'UTC')::INTEGER) AS minutes,
    telemetry.doubled((percentile_cont({hour}) WITHIN GROUP (ORDER BY telemetry.half(value)))[1]) AS median,
    telemetry.doubled((percentile_cont({hour}) WITHIN GROUP (ORDER BY telemetry.half(value)))[2]) AS p95,
    telemetry.doubled((percentile_cont({hour}) WITHIN GROUP (ORDER BY telemetry.half(value)))[3]) AS p99
FROM telemetry.readings
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW telemetry.telemetry_daily
WITH (timescaledb.continuous, timescaledb.materialized_only = true, timescaledb.chunk_interval = '1 day') AS
SELECT
    series,
    {extension}.time_bucket(INTERVAL '1 day', time) AS time,
    count(value) AS count,
    telemetry.total(
        telemetry.moments(value) FILTER (WHERE value BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145)
    ) AS sum,
    min(value) AS min,
    max(value) AS max,
    telemetry.deviations(
        telemetry.moments(value) FILTER (WHERE value BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145),
        sum(value::TEXT::NUMERIC * value::TEXT::NUMERIC) FILTER (WHERE value NOT BETWEEN -1e145 AND 1e145),
        count(value)
    ) AS m2,
    count(DISTINCT date_trunc('minute', time AT TIME ZONE 'UTC'))::INTEGER AS active_minutes,
    telemetry.doubled((percentile_cont({day}) WITHIN GROUP (ORDER BY telemetry.half(value)))[{median}]) AS median,
    telemetry.doubled((percentile_cont({day}) WITHIN GROUP (ORDER BY telemetry.half(value)))[{p95}]) AS p95,
    telemetry.doubled((percentile_cont({day}) WITHIN GROUP (ORDER BY telemetry.half(value)))[{p99}]) AS p99,
    telemetry.picture(percentile_cont({day}) WITHIN GROUP (ORDER BY telemetry.half(value))) AS grid
FROM telemetry.readings
GROUP BY 1, 2
WITH NO DATA;

-- Names of the older program. There are no refresh policies: the aggregates have no unique key, and two refreshes at a
-- time may leave a bucket twice. The worker refreshes them, one at a time (tsdb/postgres/rolling.py). There is no
-- retention policy either: raw is dropped by the worker, and only once its day is sealed.
SELECT {extension}.add_compression_policy('telemetry.readings', compress_after => INTERVAL '4 days');

-- Drop the raw of a day, and its rows in the aggregates, whose chunks are days too.
CREATE FUNCTION telemetry.drop_day(day DATE) RETURNS VOID
LANGUAGE plpgsql AS $$
DECLARE
    first TIMESTAMPTZ := day::TIMESTAMP AT TIME ZONE 'UTC';
    after TIMESTAMPTZ := (day + 1)::TIMESTAMP AT TIME ZONE 'UTC';
    relation TEXT;
BEGIN
    FOREACH relation IN ARRAY ARRAY['readings', 'telemetry_hourly', 'telemetry_daily'] LOOP
        PERFORM {extension}.drop_chunks(
            ('telemetry.' || relation)::REGCLASS, older_than => after, newer_than => first
        );
    END LOOP;
END
$$;

-- name: r0001_views
-- All buckets, for people and their tools; behind what is written by some hours (docs/TIMESCALEDB.md).
CREATE VIEW telemetry.hourly AS
SELECT
    series.uuid AS sensor_uuid, time, count, sum / nullif(count, 0) AS average, min, max,
    sqrt(m2 / nullif(count - 1, 0)) AS stddev, bit_count(minutes::BIT(64))::INTEGER AS active_minutes,
    median, p95, p99, approximate
FROM (
    SELECT series, time, count, sum, min, max, m2, minutes, median, p95, p99, false AS approximate
    FROM telemetry.telemetry_hourly
    UNION ALL
    SELECT series, time, count, sum, min, max, m2, minutes, median, p95, p99, approximate
    FROM telemetry.sealed_hourly
) AS bucket
JOIN telemetry.series ON series.id = bucket.series;

CREATE VIEW telemetry.daily AS
SELECT
    series.uuid AS sensor_uuid, time, count, sum / nullif(count, 0) AS average, min, max,
    sqrt(m2 / nullif(count - 1, 0)) AS stddev, active_minutes, median, p95, p99, approximate
FROM (
    SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, false AS approximate
    FROM telemetry.telemetry_daily
    UNION ALL
    SELECT series, time, count, sum, min, max, m2, active_minutes, median, p95, p99, approximate
    FROM telemetry.sealed_daily
) AS bucket
JOIN telemetry.series ON series.id = bucket.series;
