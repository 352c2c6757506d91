-- Limits of all keys of a customer together; null: as configured.
-- requests a minute
ALTER TABLE customers ADD COLUMN rate_limit INTEGER CHECK (rate_limit > 0);
-- tokens a minute
ALTER TABLE customers ADD COLUMN token_limit INTEGER CHECK (token_limit > 0);
-- requests at work at once
ALTER TABLE customers ADD COLUMN concurrent_limit INTEGER CHECK (concurrent_limit > 0);
