-- Where the log tells of channels: what they are and what was broadcast stands in the
-- entries themselves.

CREATE TABLE channel (
    -- Never changes.
    channel_id BLOB NOT NULL PRIMARY KEY,
    -- Entry of the latest version. Only grows.
    channel_index INTEGER NOT NULL,
    -- Latest entry about the channel: a version or a manifest. Only grows.
    head_index INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE manifest (
    -- The channel. Never changes.
    channel_id BLOB NOT NULL,
    -- Of the broadcast, from 1 without gaps. Never changes.
    sequence INTEGER NOT NULL,
    -- SHA-256("chancery manifest" ‖ manifest), 32 bytes. Never changes.
    hash BLOB NOT NULL,
    -- Entry that holds it. Never changes.
    entry_index INTEGER NOT NULL,
    PRIMARY KEY (channel_id, sequence)
) WITHOUT ROWID;
