-- Providers and routes made while the gateway runs, beside those of the configuration. `settings` is JSON in the words
-- of the configuration and holds no secret, `version` counts the changes of a row. Times are microseconds since 1970.
CREATE TABLE served (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    changed_us BIGINT NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
);

-- What authorises requests to such providers, encrypted; `key_id` names the key, `origin` is where it may be sent.
CREATE TABLE provider_secrets (
    provider TEXT PRIMARY KEY,
    sealed TEXT NOT NULL,
    key_id TEXT NOT NULL,
    origin TEXT NOT NULL,
    set_us BIGINT NOT NULL,
    set_by TEXT NOT NULL
);

-- One row: how often any of these have changed, by which replicas notice that they have.
CREATE TABLE served_version (
    name TEXT PRIMARY KEY,
    version BIGINT NOT NULL
);
