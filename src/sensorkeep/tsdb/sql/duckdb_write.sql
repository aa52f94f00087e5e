-- Statements of one write or settle. `incoming`, `accepted`, `changed` and `touched` are Arrow tables registered for
-- the statement.

-- name: known_batches
-- The bounds let zone maps skip most of the table: batch ids sort by time.
SELECT batch_id, stored, updated, duplicate
FROM batches
WHERE batch_id BETWEEN $first AND $last AND list_contains($asked, batch_id)

-- name: save_batches
INSERT INTO batches
SELECT unnest($batch_ids), unnest($stored), unnest($updated), unnest($duplicate), $written_us

-- name: find_known
-- Which incoming readings are stored already, where, and whether with the same content.
SELECT
    incoming.position,
    stored.rowid AS row_id,
    incoming.value IS NOT DISTINCT FROM stored.value
    AND incoming.status IS NOT DISTINCT FROM stored.status
    AND incoming.battery IS NOT DISTINCT FROM stored.battery
    AND incoming.rssi IS NOT DISTINCT FROM stored.rssi
    AND incoming.lqi IS NOT DISTINCT FROM stored.lqi
    AND incoming.battery_voltage IS NOT DISTINCT FROM stored.battery_voltage AS same
FROM {day} AS stored JOIN incoming ON stored.series = incoming.series AND stored.time = incoming.time
WHERE stored.time BETWEEN make_timestamptz($first_us) AND make_timestamptz($last_us)

-- name: insert_readings
INSERT INTO {day} SELECT series, time, value, status, battery, rssi, lqi, battery_voltage FROM accepted

-- name: update_readings
UPDATE {day} AS stored SET
    value = changed.value,
    status = changed.status,
    battery = changed.battery,
    rssi = changed.rssi,
    lqi = changed.lqi,
    battery_voltage = changed.battery_voltage
FROM changed WHERE stored.rowid = changed.row_id

-- name: stage_late
INSERT INTO late_stage
SELECT sequence, batch, series, time, value, status, battery, rssi, lqi, battery_voltage FROM late

-- name: staged_portion
-- Day by day, in the order accepted within each.
SELECT * FROM late_stage ORDER BY floor(epoch_us(time) / 86400000000), sequence LIMIT $limit

-- name: unstage_all
DELETE FROM late_stage

-- name: unstage_portion
DELETE FROM late_stage WHERE sequence IN (SELECT sequence FROM incoming)

-- name: mark_dirty
INSERT INTO {dirty} SELECT series, time FROM touched
