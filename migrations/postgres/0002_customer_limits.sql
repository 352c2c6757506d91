-- As SQLite's migration 7.
ALTER TABLE customers
    ADD COLUMN rate_limit BIGINT CHECK (rate_limit > 0),
    ADD COLUMN token_limit BIGINT CHECK (token_limit > 0),
    ADD COLUMN concurrent_limit BIGINT CHECK (concurrent_limit > 0);
