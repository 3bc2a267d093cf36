-- A node's store. Times are milliseconds since the Unix epoch; ids are raw bytes.
-- No column holds plaintext, a handle or a national identifier.

-- Single values: this store's incarnation, the latest verified statements.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,     -- what
    value BLOB NOT NULL
);

-- One person or organisation.
CREATE TABLE account (
    account_id BLOB PRIMARY KEY,    -- 16 bytes, random; never leaves the node
    agent      TEXT,                -- SPIFFE id of the agent whose certificate the account needs; NULL: a person
    opened_at  INTEGER NOT NULL     -- never changes
);

-- A device of an account.
CREATE TABLE device (
    device_id  BLOB PRIMARY KEY,    -- 16 bytes, chosen by the device
    account_id BLOB NOT NULL REFERENCES account (account_id),
    auth_key   BLOB NOT NULL,       -- Ed25519, 32 bytes; never changes
    added_at   INTEGER NOT NULL
);
CREATE INDEX device_of_account ON device (account_id);

-- A mailbox address of an account, one for each of its handles.
CREATE TABLE alias (
    alias      BLOB PRIMARY KEY,    -- 16 bytes, chosen by the device
    account_id BLOB NOT NULL REFERENCES account (account_id),
    added_at   INTEGER NOT NULL
);
CREATE INDEX alias_of_account ON alias (account_id);

-- KeyPackages in stock.
CREATE TABLE key_package (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    alias        BLOB NOT NULL,
    device_id    BLOB NOT NULL,
    cipher_suite INTEGER NOT NULL,  -- MLS registry
    last_resort  BOOLEAN NOT NULL,  -- TRUE: stays when taken
    message      BLOB NOT NULL      -- MLSMessage as published
);
CREATE INDEX key_package_next ON key_package (alias, device_id, cipher_suite, last_resort, id);

-- Groups that this node is the hub of.
CREATE TABLE mls_group (
    group_id BLOB PRIMARY KEY,      -- 32 bytes
    epoch    INTEGER NOT NULL,      -- current
    sequence INTEGER NOT NULL,      -- of the last message
    chain    BLOB NOT NULL          -- value at that sequence
);

-- Their members.
CREATE TABLE member (
    group_id BLOB NOT NULL,
    alias    BLOB NOT NULL,
    node     TEXT NOT NULL,         -- home of the alias
    PRIMARY KEY (group_id, alias)
);

-- Groups of other hubs that aliases of this node are in.
CREATE TABLE route (
    group_id BLOB NOT NULL,
    alias    BLOB NOT NULL,
    hub      TEXT NOT NULL,         -- never changes
    PRIMARY KEY (group_id, alias)
);

-- Submissions that wait for their hub or were decided; makes submitting idempotent.
CREATE TABLE submission (
    message_id   BLOB NOT NULL,
    sender       BLOB NOT NULL,     -- alias
    digest       BLOB NOT NULL,     -- SHA-256 of what the endpoint chose
    hub          TEXT NOT NULL,     -- who orders it
    wants_events BOOLEAN NOT NULL,
    outcome      BLOB,              -- federation.v1.Outcome; NULL: not yet known
    expires_at   INTEGER NOT NULL,
    PRIMARY KEY (message_id, sender)
);
CREATE INDEX submission_expiry ON submission (expires_at);

-- Parcels of peers that were taken once and must not be taken twice. Rows
-- outlive the parcel's expiry plus the clock skew.
CREATE TABLE received (
    message_id BLOB NOT NULL,       -- of a delivery, or derived from a report
    peer       TEXT NOT NULL,
    part       INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (message_id, peer, part)
);
CREATE INDEX received_expiry ON received (expires_at);

-- What waits for devices. Payloads lie under a growing key.
CREATE TABLE mailbox (
    position      INTEGER PRIMARY KEY AUTOINCREMENT,
    alias         BLOB NOT NULL,
    item          BLOB NOT NULL,    -- node.v1.SubscribeResponse without its position
    message_id    BLOB,             -- of a delivery; NULL: an outcome or event, which is not reported
    part          INTEGER NOT NULL,
    hub           TEXT,             -- who wants the terminal report; NULL: this node is the hub
    sender        BLOB,             -- this node is the hub: who sent it
    sender_node   TEXT,             -- and from where
    wants_events  BOOLEAN NOT NULL, -- and whether it wants events
    wants_receipt BOOLEAN NOT NULL, -- TRUE: an application message; only a device's receipt makes it delivered
    only_device   BLOB,             -- NULL: all devices
    except_device BLOB,             -- NULL: all devices
    taken         BOOLEAN NOT NULL DEFAULT FALSE, -- TRUE: a device has it, the terminal report is made
    expires_at    INTEGER NOT NULL
);
CREATE INDEX mailbox_of_alias ON mailbox (alias, position);
CREATE INDEX mailbox_expiry ON mailbox (expires_at);

-- How far each device has come.
CREATE TABLE mailbox_cursor (
    alias     BLOB NOT NULL,
    device_id BLOB NOT NULL,
    through   INTEGER NOT NULL,     -- only grows
    PRIMARY KEY (alias, device_id)
);

-- What waits for peers, and what peers have but not yet reported on.
CREATE TABLE outbox (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    peer         TEXT NOT NULL,
    state        INTEGER NOT NULL DEFAULT 0, -- 0 waiting, 1 acknowledged and kept until its outcome or reports, 2 dead letter
    kind         INTEGER NOT NULL,  -- 0 submission, 1 delivery, 2 outcome, 3 report
    parcel       BLOB NOT NULL,     -- federation.v1.Parcel
    message_id   BLOB NOT NULL,
    part         INTEGER NOT NULL,
    recipients   BLOB NOT NULL,     -- aliases not yet reported on, one after the other
    sender       BLOB NOT NULL,     -- alias
    sender_node  TEXT NOT NULL,
    wants_events BOOLEAN NOT NULL,
    reason       TEXT,              -- why a dead letter is dead
    expires_at   INTEGER NOT NULL
);
CREATE INDEX outbox_next ON outbox (peer, state, id);
CREATE INDEX outbox_message ON outbox (message_id);
CREATE INDEX outbox_expiry ON outbox (expires_at);

-- Peers as last seen.
CREATE TABLE peer (
    node        TEXT PRIMARY KEY,
    incarnation BLOB NOT NULL       -- 16 bytes; another one: the peer was restored
);

-- Whole blobs in the blob folder.
CREATE TABLE blob (
    blob_id    BLOB PRIMARY KEY,    -- SHA-256
    size       INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);
