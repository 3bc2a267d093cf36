-- The log, as PostgreSQL keeps it: entries, the tree's hashes, the signed head. Rows
-- of the first two tables are written once and never change.

CREATE TABLE log_entry (
    -- Index of the leaf, from 0, without gaps. Never changes.
    position BIGINT NOT NULL PRIMARY KEY,
    -- The leaf's bytes, at most 65,535. Never change.
    entry BYTEA NOT NULL
);

CREATE TABLE log_hash (
    -- Place of a complete subtree's hash: level 0 is the leaf's, level l + 1
    -- follows the second of its children (the "stored hash index" of Crosby
    -- and Wallach, section 3.3). From 0, without gaps. Never changes.
    position BIGINT NOT NULL PRIMARY KEY,
    -- SHA-256, 32 bytes. Never changes.
    hash BYTEA NOT NULL
);

CREATE TABLE log_head (
    -- 1: there is one head.
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    -- Number of leaves the head covers: all of log_entry. Only grows.
    size BIGINT NOT NULL,
    -- The signed checkpoint (C2SP signed note, UTF-8) of that size.
    checkpoint BYTEA NOT NULL
);
