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

-- What Stripe is still to be told, written with the change it reports.
CREATE TABLE outbox (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    -- what makes the message one and the same however often it is sent
    key             TEXT NOT NULL UNIQUE DEFAULT (lower(hex(randomblob(16)))),
    kind            TEXT NOT NULL CHECK (kind IN ('customer', 'usage')),
    customer_id     INTEGER NOT NULL REFERENCES customers (id),
    -- nano-dollars, for kind 'usage'; whole cents once it is sealed
    amount          INTEGER NOT NULL DEFAULT 0 CHECK (amount >= 0),
    created_at      INTEGER NOT NULL,
    -- when it was made ready to be sent; until then more usage is added to it
    sealed_at       INTEGER,
    -- each is written before it is made
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER,
    last_error      TEXT,
    delivered_at    INTEGER,
    -- what Stripe calls what was made
    stripe_id       TEXT,
    CHECK (kind = 'usage' OR sealed_at IS NOT NULL),
    CHECK ((sealed_at IS NULL) = (next_attempt_at IS NULL)),
    CHECK ((delivered_at IS NULL) = (stripe_id IS NULL))
) STRICT;
CREATE INDEX outbox_pending ON outbox (next_attempt_at) WHERE sealed_at IS NOT NULL AND delivered_at IS NULL;
-- of a customer: one announcement, one message being filled, one on its way
CREATE UNIQUE INDEX outbox_customer ON outbox (customer_id) WHERE kind = 'customer';
CREATE UNIQUE INDEX outbox_open ON outbox (customer_id) WHERE sealed_at IS NULL;
CREATE UNIQUE INDEX outbox_on_its_way ON outbox (customer_id)
    WHERE kind = 'usage' AND sealed_at IS NOT NULL AND delivered_at IS NULL;
