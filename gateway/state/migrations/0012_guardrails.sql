-- The guardrails of the configuration that requests pass, by name: a JSON list.
ALTER TABLE orgs ADD COLUMN guardrails TEXT;
ALTER TABLE teams ADD COLUMN guardrails TEXT;
ALTER TABLE keys ADD COLUMN guardrails TEXT;
