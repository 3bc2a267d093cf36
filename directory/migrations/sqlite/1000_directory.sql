-- The directory's own rows beside the log, as SQLite keeps them. The log
-- commits to records; the bodies lie here, where they can be erased.

CREATE TABLE record_body (
    -- Index of the log entry that commits to the record. Never changes.
    entry_index INTEGER NOT NULL PRIMARY KEY,
    -- The SignedRecord, serialised, as the commitment covers it. Never changes.
    record BLOB NOT NULL,
    -- Salt of the commitment, 32 bytes. Never changes.
    salt BLOB NOT NULL,
    -- When the entry was sequenced, milliseconds since the Unix epoch. Never changes.
    sequenced_at_ms INTEGER NOT NULL
);

CREATE TABLE record (
    -- The handle, 32 bytes; lookups read ranges of it. Never changes.
    handle BLOB NOT NULL PRIMARY KEY,
    -- Entry of the version that stands; grows with each change.
    entry_index INTEGER NOT NULL REFERENCES record_body (entry_index)
);

CREATE TABLE operation (
    -- Request id of a record operation that was logged, 16 bytes. Never changes.
    request_id BLOB NOT NULL PRIMARY KEY,
    -- SHA-256 of the record that came with it, 32 bytes. Never changes.
    digest BLOB NOT NULL,
    -- Entry it was logged as. Never changes.
    entry_index INTEGER NOT NULL
);

CREATE TABLE statement (
    -- Index of a log entry that holds a governance statement: they are
    -- replayed at the start. Never changes.
    entry_index INTEGER NOT NULL PRIMARY KEY
);
