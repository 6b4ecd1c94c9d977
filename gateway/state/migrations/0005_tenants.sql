-- Organisations, their teams and people, and what a key has to do with them. Times are microseconds since 1970, `limits`
-- and the lists are JSON. `version` counts the changes of a row. `models` null: all of those that the level above allows.
CREATE TABLE orgs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    archived_us BIGINT,
    version BIGINT NOT NULL,
    limits TEXT,
    models TEXT
);
CREATE INDEX orgs_by_age ON orgs (created_us, id);

CREATE TABLE teams (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL,
    name TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    archived_us BIGINT,
    version BIGINT NOT NULL,
    limits TEXT,
    models TEXT,
    UNIQUE (org_id, name)
);
CREATE INDEX teams_by_age ON teams (created_us, id);

-- `email` is in lower case. `admin` is an administrator of the whole gateway, and only such a one may be in no
-- organisation.
CREATE TABLE users (
    id TEXT PRIMARY KEY,
    org_id TEXT,
    email TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    admin BOOLEAN NOT NULL,
    created_us BIGINT NOT NULL,
    disabled_us BIGINT,
    version BIGINT NOT NULL,
    limits TEXT
);
CREATE INDEX users_by_age ON users (created_us, id);
CREATE INDEX users_by_org ON users (org_id);

CREATE TABLE members (
    team_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    role TEXT NOT NULL,
    limits TEXT,
    created_us BIGINT NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (team_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id);

-- `scopes` and `models` null: no narrower than what stands behind the key. `addresses` are networks, `successor` is the
-- id of the key that takes this one's place.
ALTER TABLE keys ADD COLUMN org_id TEXT;
ALTER TABLE keys ADD COLUMN team_id TEXT;
ALTER TABLE keys ADD COLUMN user_id TEXT;
ALTER TABLE keys ADD COLUMN scopes TEXT;
ALTER TABLE keys ADD COLUMN models TEXT;
ALTER TABLE keys ADD COLUMN addresses TEXT;
ALTER TABLE keys ADD COLUMN tags TEXT;
ALTER TABLE keys ADD COLUMN metadata TEXT;
ALTER TABLE keys ADD COLUMN weight DOUBLE PRECISION NOT NULL DEFAULT 1;
ALTER TABLE keys ADD COLUMN priority BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN successor TEXT;
ALTER TABLE keys ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
CREATE INDEX keys_by_age ON keys (created_us, id);
CREATE INDEX keys_by_org ON keys (org_id);
CREATE INDEX keys_by_user ON keys (user_id);
