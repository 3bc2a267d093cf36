-- Aliases that have another home. What their hubs still send is kept here.
CREATE TABLE moved (
    alias   BLOB PRIMARY KEY,
    node    TEXT NOT NULL,          -- the new home; never changes
    left_at INTEGER NOT NULL
);

-- TRUE: the hub was told that the alias has another home.
ALTER TABLE route ADD COLUMN told BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX route_of_alias ON route (alias, group_id);
CREATE INDEX member_of_alias ON member (alias, group_id);
-- News of moves that hubs have not taken yet: kind 4.
CREATE INDEX outbox_moves ON outbox (sender) WHERE kind = 4;
