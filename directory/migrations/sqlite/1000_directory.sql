-- The directory's own rows beside the log, as SQLite keeps them. The log commits to
-- records; the bodies lie here, where they can be erased. Rows go under growing keys
-- alone, so that a record costs the same whatever number of them is there.

CREATE TABLE record_body (
    -- Index of the log entry that commits to the record. Never changes.
    entry_index INTEGER NOT NULL PRIMARY KEY,
    -- Entry of the version before, of the same handle. Never changes.
    previous_index INTEGER,
    -- First 32 bits of the handle, as a number. Never changes.
    handle_prefix INTEGER NOT NULL,
    -- Serialised MapItems of one MapItem, with record and salt: those of a place, one
    -- behind the other, are what a lookup answers. Never changes.
    item BLOB NOT NULL,
    -- When the entry was sequenced, milliseconds since the Unix epoch. Never changes.
    sequenced_at_ms INTEGER NOT NULL,
    -- The handle's entries of that day, this one included. Never changes.
    changes INTEGER NOT NULL
);

-- For erasing all that was ever put for a handle.
CREATE INDEX record_body_previous ON record_body (previous_index) WHERE previous_index IS NOT NULL;

CREATE TABLE map_item (
    -- Index of the entry that stands in the map. Never changes.
    entry_index INTEGER NOT NULL PRIMARY KEY,
    -- The item as the map's hash covers it, 53 bytes. Never changes.
    item BLOB NOT NULL
);

CREATE TABLE map_root (
    -- 1: there is one latest root.
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    -- Index of its entry. Only grows.
    entry_index INTEGER NOT NULL
);

CREATE TABLE mirrored (
    -- 1: there is one.
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    -- Of a mirror: the directory's checkpoint up to which it has everything. Only grows.
    checkpoint BLOB NOT NULL
);

CREATE TABLE statement (
    -- Index of a log entry that holds a governance statement: they are
    -- replayed at the start. Never changes.
    entry_index INTEGER NOT NULL PRIMARY KEY
);

CREATE TABLE evaluation_total (
    -- Id of the evaluator. Never changes.
    evaluator TEXT NOT NULL,
    -- Day (UTC) since the Unix epoch. Never changes.
    day INTEGER NOT NULL,
    -- SHA-256 of the totals as signed, 32 bytes. Never changes.
    digest BLOB NOT NULL,
    -- Entry that holds them. Never changes.
    entry_index INTEGER NOT NULL,
    PRIMARY KEY (evaluator, day)
);
