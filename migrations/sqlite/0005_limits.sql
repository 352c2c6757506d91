-- Limits of a key beside its rate; null: as configured.
-- tokens a minute, for each model
ALTER TABLE api_keys ADD COLUMN token_limit INTEGER CHECK (token_limit > 0);
-- requests at work at once, for each model
ALTER TABLE api_keys ADD COLUMN concurrent_limit INTEGER CHECK (concurrent_limit > 0);
