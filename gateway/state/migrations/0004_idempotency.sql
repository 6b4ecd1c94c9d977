-- What became of requests with an Idempotency-Key. `id` is a digest of tenant, API key, route and the client's key,
-- `digest` one of the body. `status` is null while `owner` runs it, which has to renew `lease_us`. `body` is null when
-- the request ran and its result was not kept.
CREATE TABLE idempotency (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    request_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    claimed_us BIGINT NOT NULL,
    lease_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    status BIGINT,
    size_bytes BIGINT NOT NULL,
    headers TEXT,
    body BYTEA
);
CREATE INDEX idempotency_by_end ON idempotency (expires_us);
