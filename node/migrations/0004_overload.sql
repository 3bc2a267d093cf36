-- Submissions to hubs that have been silent for long are looked for once a second, among
-- however many deliveries the same peers have waiting.
CREATE INDEX outbox_submissions ON outbox (peer, expires_at) WHERE kind = 0 AND state < 2;
