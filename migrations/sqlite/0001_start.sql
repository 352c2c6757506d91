-- Times are milliseconds since 1970 (UTC), money is nano-dollars.

CREATE TABLE customers (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL,
    email      TEXT NOT NULL,
    company    TEXT NOT NULL,
    stripe_id  TEXT,
    created_at INTEGER NOT NULL,
    -- a deleted customer keeps its usage, which is a record of money
    deleted_at INTEGER
) STRICT;
CREATE UNIQUE INDEX customers_email ON customers (lower(email)) WHERE deleted_at IS NULL;

CREATE TABLE api_keys (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    customer_id    INTEGER NOT NULL REFERENCES customers (id),
    name           TEXT NOT NULL,
    -- the part of the key that names it, not secret
    public_id      TEXT NOT NULL UNIQUE,
    -- HMAC-SHA256 of the whole key
    hash           BLOB NOT NULL,
    rate_limit     INTEGER NOT NULL CHECK (rate_limit > 0),
    -- JSON array of model ids
    allowed_models TEXT NOT NULL,
    is_active      INTEGER NOT NULL DEFAULT 1,
    created_at     INTEGER NOT NULL,
    deleted_at     INTEGER
) STRICT;
CREATE INDEX api_keys_customer ON api_keys (customer_id);

CREATE TABLE admin_key (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    hash       BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE usage (
    id                 INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id         TEXT NOT NULL UNIQUE,
    customer_id        INTEGER NOT NULL REFERENCES customers (id),
    api_key_id         INTEGER NOT NULL REFERENCES api_keys (id),
    model_id           INTEGER NOT NULL,
    model_name         TEXT NOT NULL,
    -- SHA-256 of the component that answered
    plugin_digest      TEXT,
    prompt_tokens      INTEGER NOT NULL,
    completion_tokens  INTEGER NOT NULL,
    -- whether the plugin counted the tokens or guessed them
    tokens_estimated   INTEGER NOT NULL,
    -- price at the time, nano-dollars per million tokens
    prompt_price       INTEGER NOT NULL,
    completion_price   INTEGER NOT NULL,
    cost               INTEGER NOT NULL,
    status             TEXT NOT NULL CHECK (status IN ('ok', 'failed', 'cancelled')),
    error_code         TEXT,
    latency_ms         INTEGER NOT NULL,
    created_at         INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_customer ON usage (customer_id, id);
CREATE INDEX usage_customer_time ON usage (customer_id, created_at);

-- What another service is still to be told, written with the change it reports.
CREATE TABLE outbox (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    kind            TEXT NOT NULL CHECK (kind IN ('customer', 'usage')),
    customer_id     INTEGER NOT NULL REFERENCES customers (id),
    -- what makes the message one and the same however often it is written
    dedup_key       TEXT NOT NULL UNIQUE,
    -- nano-dollars, for kind 'usage'
    amount          INTEGER NOT NULL DEFAULT 0,
    -- messages sent together carry the same batch, which is also their idempotency key
    batch           TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL,
    last_error      TEXT,
    created_at      INTEGER NOT NULL,
    delivered_at    INTEGER
) STRICT;
CREATE INDEX outbox_pending ON outbox (next_attempt_at) WHERE delivered_at IS NULL;
