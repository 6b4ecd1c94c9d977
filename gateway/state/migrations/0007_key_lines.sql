-- The first of the keys that took one another's place. Their limits are counted under its id, so that a rotation does
-- not begin them anew.
ALTER TABLE keys ADD COLUMN counted_as TEXT;
