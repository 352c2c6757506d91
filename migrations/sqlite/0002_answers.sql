-- Answers to requests that came with an Idempotency-Key, for a repeat of the
-- same request. Written in the transaction of the usage row; kept for a day.
CREATE TABLE answers (
    api_key_id      INTEGER NOT NULL REFERENCES api_keys (id),
    -- the client's name for the request
    idempotency_key TEXT NOT NULL,
    -- SHA-256 of the endpoint's path and the body
    fingerprint     BLOB NOT NULL,
    request_id      TEXT NOT NULL,
    -- JSON, as host/src/generate/idempotency.rs writes it
    answer          TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    PRIMARY KEY (api_key_id, idempotency_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX answers_time ON answers (created_at);
