-- Which organisation a request belonged to. Within an hour a key belongs to one, so it is no part of the sums' key.
ALTER TABLE ledger ADD COLUMN org_id TEXT;
ALTER TABLE usage_hours ADD COLUMN org_id TEXT NOT NULL DEFAULT '';

-- What entries that are no longer in the ledger had charged each account, so that every balance can still be derived.
CREATE TABLE ledger_dropped (
    account TEXT PRIMARY KEY,
    debits_nano BIGINT NOT NULL
);

-- One row: the last entry of the audit log that was dropped. The chain of those that remain begins with its hash.
CREATE TABLE audit_anchor (
    name TEXT PRIMARY KEY,
    number BIGINT NOT NULL,
    hash TEXT NOT NULL
);
