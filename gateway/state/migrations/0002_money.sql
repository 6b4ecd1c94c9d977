-- One row per governed request, and one per later correction. Money is nano-USD, times are microseconds since 1970.
-- `accounts` is a JSON list of the accounts that paid `charged_nano` each; `price` is JSON, nano-USD per million tokens.
CREATE TABLE ledger (
    id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    at_us BIGINT NOT NULL,
    status TEXT NOT NULL,
    outcome TEXT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user_id TEXT,
    team_id TEXT,
    model TEXT NOT NULL,
    target TEXT NOT NULL,
    provider TEXT NOT NULL,
    kind TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    estimated BOOLEAN NOT NULL,
    price TEXT,
    cost_nano BIGINT,
    charged_nano BIGINT NOT NULL,
    accounts TEXT NOT NULL,
    latency_us BIGINT NOT NULL,
    first_token_us BIGINT,
    cache TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    corrects TEXT
);
CREATE INDEX ledger_by_request ON ledger (request_id, key_id);
CREATE INDEX ledger_by_time ON ledger (at_us);
CREATE INDEX ledger_by_key ON ledger (key_id, at_us);
CREATE INDEX ledger_by_corrected ON ledger (corrects) WHERE corrects IS NOT NULL;

-- Sums of the ledger by hour, written with its entries.
CREATE TABLE usage_hours (
    hour_us BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    team_id TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cost_nano BIGINT NOT NULL,
    PRIMARY KEY (hour_us, tenant, key_id, user_id, team_id, model, provider)
);

-- What ever went out of and into each account: a budget's period or a wallet.
CREATE TABLE balances (
    account TEXT PRIMARY KEY,
    debits_nano BIGINT NOT NULL,
    credits_nano BIGINT NOT NULL
);

CREATE TABLE wallets (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    created_us BIGINT NOT NULL
);

-- Double entry: every row takes from one account what it gives to the other.
CREATE TABLE transfers (
    id TEXT PRIMARY KEY,
    debit TEXT NOT NULL,
    credit TEXT NOT NULL,
    amount_nano BIGINT NOT NULL CHECK (amount_nano > 0),
    kind TEXT NOT NULL,
    at_us BIGINT NOT NULL,
    note TEXT NOT NULL,
    CHECK (debit <> credit)
);
CREATE INDEX transfers_by_debit ON transfers (debit, at_us);
CREATE INDEX transfers_by_credit ON transfers (credit, at_us);

-- A key's own limits, as JSON.
ALTER TABLE keys ADD COLUMN limits TEXT;
