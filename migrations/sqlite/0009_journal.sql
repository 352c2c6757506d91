-- Usage that is on record and yet to be posted: to the list of usage, its sums, and the
-- ledger. A row of it is all that must be on the disk before an answer is whole, so it
-- has no index and refers to nothing: that is checked when many are posted at once.
CREATE TABLE journal (
    id                 INTEGER PRIMARY KEY,
    request_id         TEXT NOT NULL,
    customer_id        INTEGER NOT NULL,
    api_key_id         INTEGER NOT NULL,
    model_id           INTEGER NOT NULL,
    model_name         TEXT NOT NULL,
    plugin_digest      TEXT,
    prompt_tokens      INTEGER NOT NULL,
    completion_tokens  INTEGER NOT NULL,
    tokens_estimated   INTEGER NOT NULL,
    prompt_price       INTEGER NOT NULL,
    completion_price   INTEGER NOT NULL,
    cost               INTEGER NOT NULL,
    status             TEXT NOT NULL,
    error_code         TEXT,
    latency_ms         INTEGER NOT NULL,
    created_at         INTEGER NOT NULL
) STRICT;
