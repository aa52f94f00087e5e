-- The claim queue in one SQLite file.

-- Claims that are not acknowledged. Publishing writes this table and no other: each further page costs a commit a tenth.
CREATE TABLE IF NOT EXISTS claims (
    seq INTEGER PRIMARY KEY,  -- the order published, without gaps, never used again; the token of a delivery
    readings INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    claim BLOB NOT NULL  -- msgpack of model.Claim; last, so that the columns above are read without it
);

-- Deliveries of claims that were delivered more than once. A table of its own, because changing a number beside
-- the payload would write the payload again.
CREATE TABLE IF NOT EXISTS redelivered (
    seq INTEGER PRIMARY KEY,
    attempts INTEGER NOT NULL
);

-- Claims that cannot be read back, set aside so that those behind them go on.
CREATE TABLE IF NOT EXISTS damaged (
    seq INTEGER PRIMARY KEY,
    readings INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    claim BLOB NOT NULL,
    damaged_us INTEGER NOT NULL
);

-- One row, written when claims are delivered or removed.
-- How many claims wait = the last number given out - removed: counting a million of them would read their payloads.
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    removed INTEGER NOT NULL,  -- claims acknowledged or set aside, ever
    last_seq INTEGER NOT NULL,  -- the last number given out when this row was written; later ones are in `claims`
    delivered_through INTEGER NOT NULL,  -- claims up to this seq were delivered at least once
    checked_us INTEGER NOT NULL  -- last write that proved that the queue can be written
);
INSERT OR IGNORE INTO state VALUES (1, 0, 0, 0, 0);
