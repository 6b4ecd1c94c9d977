-- Which organisation a provider, or the configuration, calls so. Names of organisations are not unique.
CREATE TABLE org_sources (
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    org_id TEXT NOT NULL,
    PRIMARY KEY (source, name)
);
