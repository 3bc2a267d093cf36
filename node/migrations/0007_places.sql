-- A broadcast that has expired keeps its place, so that nobody takes it for withheld. Its wraps go.
ALTER TABLE broadcast ADD COLUMN is_over INTEGER NOT NULL DEFAULT 0;
DROP INDEX broadcast_expiry;
CREATE INDEX broadcast_expiry ON broadcast (is_over, expires_at);
