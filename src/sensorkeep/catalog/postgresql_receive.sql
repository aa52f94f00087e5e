-- Enters receipts of accepted batches that are not known yet, and adds them to the totals: in one statement, so that the
-- row of totals, for which everybody's receipts wait, is held for no round trip. A crash of the server may lose it.
-- given: the receipts, a JSON array of objects.
WITH relaxed AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
),
entered AS (
    INSERT INTO batches (
        batch_id, received_us, readings, quarantined, pending, wire_bytes, oldest_us, object_key, wire_format,
        state, stored, updated, duplicate
    )
    SELECT
        batch_id, received_us, readings, quarantined, pending, wire_bytes, oldest_us, object_key, wire_format,
        'accepted', 0, 0, 0
    FROM json_to_recordset(%(given)s::text::json) AS given (
        batch_id text, received_us bigint, readings bigint, quarantined bigint, pending bigint, wire_bytes bigint,
        oldest_us bigint, object_key text, wire_format text
    )
    ON CONFLICT DO NOTHING
    RETURNING readings, quarantined, pending
),
sums AS (
    SELECT
        count(*) AS batches,
        coalesce(sum(readings), 0)::bigint AS readings,
        coalesce(sum(quarantined), 0)::bigint AS quarantined,
        coalesce(sum(pending), 0)::bigint AS pending
    FROM entered
)
UPDATE ledger
SET
    received = ledger.received + sums.readings,
    quarantined = ledger.quarantined + sums.quarantined,
    pending = ledger.pending + sums.pending
FROM sums, relaxed
WHERE ledger.id = 1 AND sums.batches > 0
