-- As in migrations/sqlite/0008_usage_sums.sql.
CREATE TABLE usage_sums (
    period            TEXT NOT NULL CHECK (period IN ('hour', 'total')),
    customer_id       BIGINT NOT NULL REFERENCES customers (id),
    start             BIGINT NOT NULL,
    api_key_id        BIGINT NOT NULL REFERENCES api_keys (id),
    model_id          BIGINT NOT NULL,
    requests          BIGINT NOT NULL,
    prompt_tokens     BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cost              BIGINT NOT NULL,
    model_name        TEXT NOT NULL,
    latest            BIGINT NOT NULL,
    PRIMARY KEY (period, customer_id, start, api_key_id, model_id)
) WITH (fillfactor = 50);

INSERT INTO usage_sums (period, customer_id, start, api_key_id, model_id, requests,
        prompt_tokens, completion_tokens, cost, model_name, latest)
    SELECT 'hour', customer_id, created_at / 3600000 * 3600000, api_key_id, model_id, count(*),
        sum(prompt_tokens), sum(completion_tokens), sum(cost),
        (array_agg(model_name ORDER BY created_at DESC))[1], max(created_at)
    FROM usage GROUP BY 2, 3, 4, 5;
INSERT INTO usage_sums (period, customer_id, start, api_key_id, model_id, requests,
        prompt_tokens, completion_tokens, cost, model_name, latest)
    SELECT 'total', customer_id, 0, api_key_id, model_id, sum(requests),
        sum(prompt_tokens), sum(completion_tokens), sum(cost),
        (array_agg(model_name ORDER BY latest DESC))[1], max(latest)
    FROM usage_sums GROUP BY customer_id, api_key_id, model_id;

DROP INDEX usage_customer_time;

CREATE TABLE usage_deleted (
    id     BIGINT PRIMARY KEY CHECK (id = 1),
    before BIGINT NOT NULL
);
