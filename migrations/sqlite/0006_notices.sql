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
