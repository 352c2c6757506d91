-- What a key may be used for, from where and until when. Keys from before may
-- do what they could.
ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL
    DEFAULT '["generate","models:read","usage:read","keys:read","customer:read"]';
-- JSON array of networks; without one, from anywhere
ALTER TABLE api_keys ADD COLUMN allowed_networks TEXT;
ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;
-- written a few seconds late, off the way of requests
ALTER TABLE api_keys ADD COLUMN last_used_at INTEGER;
-- the text that the latest rotation replaced, and until when it works beside
-- the one that replaced it
ALTER TABLE api_keys ADD COLUMN replaced_public_id TEXT;
ALTER TABLE api_keys ADD COLUMN replaced_hash BLOB;
ALTER TABLE api_keys ADD COLUMN replaced_until INTEGER;
CREATE UNIQUE INDEX api_keys_replaced ON api_keys (replaced_public_id);

-- What was done with the operator's authority. Written in the transaction of
-- the act; rows are added and nothing else.
CREATE TABLE audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    -- by which authority: the admin key, a command line, the server by itself
    actor      TEXT NOT NULL,
    -- what was done, such as key.rotated
    action     TEXT NOT NULL,
    -- to what, such as key/7
    object     TEXT NOT NULL,
    -- JSON of the object, without secrets
    before     TEXT,
    after      TEXT,
    -- of the request that asked for it
    request_id TEXT,
    client     TEXT
) STRICT;
CREATE INDEX audit_object ON audit (object, id);
CREATE INDEX audit_time ON audit (at);
CREATE TRIGGER audit_is_not_updated BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is not changed');
END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is not changed');
END;
-- INSERT OR REPLACE deletes without asking the trigger for it
CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'the audit log is not changed');
END;
