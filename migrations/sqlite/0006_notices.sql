-- What the operator's webhook is still to be told, written with the change that
-- it tells of.
CREATE TABLE notices (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    -- what makes it one and the same however often it is sent, and a change one
    -- notice however often it happens
    key             TEXT NOT NULL UNIQUE,
    -- JSON, as it is sent
    body            TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    -- each is written before it is made
    attempts        INTEGER NOT NULL DEFAULT 0,
    -- null once it is delivered
    next_attempt_at INTEGER,
    last_error      TEXT,
    delivered_at    INTEGER,
    CHECK ((next_attempt_at IS NULL) = (delivered_at IS NOT NULL))
) STRICT;
CREATE INDEX notices_pending ON notices (next_attempt_at) WHERE next_attempt_at IS NOT NULL;

-- The balance at which a customer's credit is nearly used: of what there was when
-- money was last booked, or the limit changed, the most is spent. Null without a
-- limit.
ALTER TABLE accounts ADD COLUMN near_at INTEGER;
UPDATE accounts SET near_at = posted - (posted + credit_limit) / 100 * 80 WHERE customer_id IS NOT NULL;
