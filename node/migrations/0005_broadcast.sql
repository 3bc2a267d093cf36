-- Seats of this node's devices in broadcast channels. Channels are named by owner and id, so
-- that nobody but the owner's node can bring anything to them.
CREATE TABLE seat (
    seat_id     BLOB PRIMARY KEY,   -- 16 bytes, chosen by the device
    device_id   BLOB NOT NULL,      -- never changes
    owner       TEXT NOT NULL,      -- administration of the channel; never changes
    channel_id  BLOB NOT NULL,      -- 16 bytes; never changes
    agent_alias BLOB NOT NULL,      -- where the owner's agent reads
    state       INTEGER NOT NULL,   -- 0 waits to be handed over, 1 handed over, 2 in a cell, 3 given up and the agent is to hear of it
    key_package BLOB,               -- MLSMessage; NULL once it was handed over
    invitation  BLOB,               -- NULL once it was handed over
    cell        INTEGER,            -- number of its cell; NULL: in none yet
    sequence    INTEGER,            -- of the change that brought it in
    welcome     BLOB                -- MLSMessage cut to it
);
CREATE INDEX seat_of_device ON seat (device_id);
CREATE INDEX seat_to_hand_over ON seat (owner, channel_id, agent_alias) WHERE state IN (0, 3);

-- Changes of cells: one row for each, whatever the number of its residents.
CREATE TABLE cell_change (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    owner           TEXT NOT NULL,
    channel_id      BLOB NOT NULL,
    cell            INTEGER NOT NULL,
    sequence        INTEGER NOT NULL,   -- from 1, without gaps
    first_broadcast INTEGER NOT NULL,   -- first one that is wrapped with its keys
    commit_message  BLOB NOT NULL,      -- MLSMessage; empty: the group was new
    key_message     BLOB NOT NULL,      -- MLSMessage
    expires_at      INTEGER NOT NULL
);
CREATE UNIQUE INDEX cell_change_of_cell ON cell_change (owner, channel_id, cell, sequence);
CREATE INDEX cell_change_expiry ON cell_change (expires_at);

-- The ratchet tree for those who came in with a change; apart, because changes are read by all.
CREATE TABLE cell_tree (
    change_id INTEGER PRIMARY KEY,      -- cell_change.id
    tree      BLOB NOT NULL
);

-- Broadcasts: one row for each.
CREATE TABLE broadcast (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    owner           TEXT NOT NULL,
    channel_id      BLOB NOT NULL,
    sequence        INTEGER NOT NULL,
    logged_manifest BLOB NOT NULL,      -- directory.v1.LoggedManifest
    expires_at      INTEGER NOT NULL
);
CREATE UNIQUE INDEX broadcast_of_channel ON broadcast (owner, channel_id, sequence);
CREATE INDEX broadcast_expiry ON broadcast (expires_at);

-- Their content keys: one row for each 1,024 cells.
CREATE TABLE broadcast_wraps (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    broadcast_id INTEGER NOT NULL,      -- broadcast.id
    row          INTEGER NOT NULL,      -- its first cell is row * 1024
    wraps        BLOB NOT NULL          -- 56 bytes a cell
);
CREATE UNIQUE INDEX broadcast_wraps_row ON broadcast_wraps (broadcast_id, row);

-- The last time that all cells of a channel were given up: a closing counts once.
CREATE TABLE cell_closing (
    owner      TEXT NOT NULL,
    channel_id BLOB NOT NULL,
    closing_id BLOB NOT NULL,           -- 16 bytes, random
    PRIMARY KEY (owner, channel_id)
);
