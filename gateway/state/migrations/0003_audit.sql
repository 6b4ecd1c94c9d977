-- The audit log. `hash` is the SHA-256 over the hash of the entry before and the entry itself, so no entry can be
-- changed, removed or moved unnoticed. `details` is JSON, times are microseconds since 1970.
CREATE TABLE audit (
    number BIGINT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at_us BIGINT NOT NULL,
    actor TEXT NOT NULL,
    tenant TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    request_id TEXT NOT NULL,
    details TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX audit_by_actor ON audit (actor, number);
CREATE INDEX audit_by_tenant ON audit (tenant, number);

-- One row: the newest entry, so that entries missing at the end are noticed too.
CREATE TABLE audit_head (
    name TEXT PRIMARY KEY,
    number BIGINT NOT NULL,
    hash TEXT NOT NULL
);
