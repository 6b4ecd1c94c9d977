-- How people log in. Times are microseconds since 1970.

-- `claimed` while nobody but the user has said that the e-mail address is theirs.
CREATE TABLE passwords (
    user_id TEXT PRIMARY KEY,
    hash TEXT NOT NULL,
    claimed BOOLEAN NOT NULL,
    changed_us BIGINT NOT NULL
);

-- Log-ins of browsers; of each token only a keyed digest. `provider` is empty where a password was given.
CREATE TABLE browser_sessions (
    digest TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    address TEXT NOT NULL,
    agent TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    seen_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL
);
CREATE INDEX browser_sessions_by_user ON browser_sessions (user_id);
CREATE INDEX browser_sessions_by_end ON browser_sessions (expires_us);
CREATE INDEX browser_sessions_by_use ON browser_sessions (seen_us);

-- As whom a user is known to OpenID providers. A subject is unique at its issuer only.
CREATE TABLE identities (
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    user_id TEXT NOT NULL,
    email TEXT,
    linked_us BIGINT NOT NULL,
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX identities_by_user ON identities (user_id);

-- Who may become a user of an organisation; of each token only a keyed digest. `inviter` is the id of a user or key.
CREATE TABLE invitations (
    id TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    email TEXT NOT NULL,
    org_id TEXT NOT NULL,
    role TEXT NOT NULL,
    inviter TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    used_us BIGINT
);
CREATE INDEX invitations_by_email ON invitations (email);
CREATE INDEX invitations_by_org ON invitations (org_id);
