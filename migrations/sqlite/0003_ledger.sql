-- Who owes whom, in double entry: every transfer takes from one account what it
-- gives to another, so that all balances together are always 0.
CREATE TABLE accounts (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    -- of the house: what customers paid, and what they used
    name         TEXT UNIQUE CHECK (name IN ('payments', 'revenue')),
    customer_id  INTEGER UNIQUE REFERENCES customers (id),
    -- the balance: transfers to it less transfers from it
    posted       INTEGER NOT NULL DEFAULT 0,
    -- the sum of its open holds
    held         INTEGER NOT NULL DEFAULT 0 CHECK (held >= 0),
    -- how far below 0 requests may take the balance; null: as far as they like
    credit_limit INTEGER CHECK (credit_limit >= 0),
    CHECK ((name IS NULL) <> (customer_id IS NULL))
) STRICT;

CREATE TABLE transfers (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- the account that it takes from, and the one that it gives to
    debit      INTEGER NOT NULL REFERENCES accounts (id),
    credit     INTEGER NOT NULL REFERENCES accounts (id),
    amount     INTEGER NOT NULL CHECK (amount > 0),
    reason     TEXT NOT NULL CHECK (reason IN ('usage', 'top_up', 'correction')),
    -- what it is booked for, once: the request's id, or the operator's name for it
    reference  TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    CHECK (debit <> credit),
    UNIQUE (reason, reference)
) STRICT;
CREATE INDEX transfers_debit ON transfers (debit, id);
CREATE INDEX transfers_credit ON transfers (credit, id) WHERE reason <> 'usage';

-- What a request may come to cost, until it is settled.
CREATE TABLE holds (
    request_id  TEXT PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    api_key_id  INTEGER NOT NULL REFERENCES api_keys (id),
    amount      INTEGER NOT NULL CHECK (amount >= 0),
    -- the usage row's: what decides the period that a budget counts it in
    created_at  INTEGER NOT NULL,
    -- no request is at work for longer
    expires_at  INTEGER NOT NULL,
    -- the run of the server that will settle it, or is dead
    process     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- How much may be spent in a day, a month (UTC) or ever.
CREATE TABLE budgets (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    customer_id  INTEGER NOT NULL REFERENCES customers (id),
    -- null: of all the customer's keys together
    api_key_id   INTEGER REFERENCES api_keys (id),
    period       TEXT NOT NULL CHECK (period IN ('day', 'month', 'total')),
    amount       INTEGER NOT NULL CHECK (amount >= 0),
    -- the part of the amount, in percent, from which the end is near
    near_percent INTEGER NOT NULL CHECK (near_percent BETWEEN 1 AND 100)
) STRICT;
CREATE UNIQUE INDEX budgets_owner ON budgets (customer_id, coalesce(api_key_id, 0), period);

-- What was spent and is held of a budget, by the periods in which it was used.
CREATE TABLE spending (
    budget_id INTEGER NOT NULL REFERENCES budgets (id) ON DELETE CASCADE,
    -- when the period began; 0 for a total
    start     INTEGER NOT NULL,
    spent     INTEGER NOT NULL CHECK (spent >= 0),
    held      INTEGER NOT NULL CHECK (held >= 0),
    PRIMARY KEY (budget_id, start)
) STRICT, WITHOUT ROWID;

-- What was used before there was a ledger is booked as if there had been one.
INSERT INTO accounts (id, name) VALUES (1, 'payments'), (2, 'revenue');
INSERT INTO accounts (customer_id) SELECT id FROM customers ORDER BY id;
INSERT INTO transfers (debit, credit, amount, reason, reference, created_at)
    SELECT accounts.id, 2, usage.cost, 'usage', usage.request_id, usage.created_at
    FROM usage JOIN accounts USING (customer_id) WHERE usage.cost > 0 ORDER BY usage.id;
UPDATE accounts SET posted =
    coalesce((SELECT sum(amount) FROM transfers WHERE credit = accounts.id), 0)
    - coalesce((SELECT sum(amount) FROM transfers WHERE debit = accounts.id), 0);
