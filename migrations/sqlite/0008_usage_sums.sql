-- Sums of usage, changed in the transaction of each row of it, so that nobody need
-- add up millions of rows to show them. They stay when rows are deleted.
CREATE TABLE usage_sums (
    period            TEXT NOT NULL CHECK (period IN ('hour', 'total')),
    customer_id       INTEGER NOT NULL REFERENCES customers (id),
    -- when the hour began; 0 for a total
    start             INTEGER NOT NULL,
    api_key_id        INTEGER NOT NULL REFERENCES api_keys (id),
    model_id          INTEGER NOT NULL,
    requests          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost              INTEGER NOT NULL,
    -- the model's name as of the latest request, and when that was admitted
    model_name        TEXT NOT NULL,
    latest            INTEGER NOT NULL,
    PRIMARY KEY (period, customer_id, start, api_key_id, model_id)
) STRICT, WITHOUT ROWID;

-- of the columns that are not grouped by, the row with the maximum is taken
INSERT INTO usage_sums (period, customer_id, start, api_key_id, model_id, requests,
        prompt_tokens, completion_tokens, cost, model_name, latest)
    SELECT 'hour', customer_id, created_at / 3600000 * 3600000, api_key_id, model_id, count(*),
        sum(prompt_tokens), sum(completion_tokens), sum(cost), model_name, max(created_at)
    FROM usage GROUP BY 2, 3, 4, 5;
INSERT INTO usage_sums (period, customer_id, start, api_key_id, model_id, requests,
        prompt_tokens, completion_tokens, cost, model_name, latest)
    SELECT 'total', customer_id, 0, api_key_id, model_id, sum(requests),
        sum(prompt_tokens), sum(completion_tokens), sum(cost), model_name, max(latest)
    FROM usage_sums GROUP BY customer_id, api_key_id, model_id;

-- nothing looks for rows of a time any more
DROP INDEX usage_customer_time;

-- Rows of usage that were admitted before this may have been deleted.
CREATE TABLE usage_deleted (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    before INTEGER NOT NULL
) STRICT;
