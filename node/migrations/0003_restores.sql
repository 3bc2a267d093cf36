-- How often the device used or made secret keys, as it last said: only grows. A device
-- whose store counts less was restored from a copy.
ALTER TABLE device ADD COLUMN store_count INTEGER NOT NULL DEFAULT 0;
-- Since when the peer's node has not answered; NULL: it has.
ALTER TABLE peer ADD COLUMN silent_since INTEGER;
