-- The rows of a node's mailbox and nothing else: what the disk alone bears.
CREATE TABLE mailbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    alias    BLOB NOT NULL,
    item     BLOB NOT NULL
);
CREATE INDEX mailbox_of_alias ON mailbox (alias, position);
