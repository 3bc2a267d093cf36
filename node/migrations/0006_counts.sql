-- What became of broadcasts at devices: sums alone. Of whom they are nothing is kept.
ALTER TABLE broadcast ADD COLUMN came_at INTEGER NOT NULL DEFAULT 0;   -- when it was announced here
ALTER TABLE broadcast ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE broadcast ADD COLUMN read INTEGER NOT NULL DEFAULT 0;
ALTER TABLE broadcast ADD COLUMN told INTEGER NOT NULL DEFAULT 0;      -- how often its channel's agent was told, up to 4 times
CREATE INDEX broadcast_to_tell ON broadcast (came_at) WHERE told < 4;

-- How many reports of a seat were counted: each counts once.
ALTER TABLE seat ADD COLUMN reports INTEGER NOT NULL DEFAULT 0;
CREATE INDEX seat_of_channel ON seat (owner, channel_id);
