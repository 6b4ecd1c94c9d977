-- API keys: only a keyed digest of each is kept. Times are microseconds since 1970.
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    admin BOOLEAN NOT NULL,
    digest TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT,
    revoked_us BIGINT,
    revoked_reason TEXT,
    last_used_us BIGINT
);
CREATE INDEX keys_by_tenant ON keys (tenant);

-- Facts that hold for the whole database, such as which pepper its digests were made with.
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
