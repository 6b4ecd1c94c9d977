-- What the prices of an organisation or a team are multiplied by, as decimal text; null: as above, or not at all.
ALTER TABLE orgs ADD COLUMN price_factor TEXT;
ALTER TABLE teams ADD COLUMN price_factor TEXT;
