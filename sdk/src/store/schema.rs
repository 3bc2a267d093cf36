//! The tables. Migrations only ever grow at the end; `user_version` counts the
//! ones a file has seen, and a file from a newer build is refused.

use super::StoreError;
use crate::mls::provider::JsonCodec;
use openmls_sqlite_storage::SqliteStorageProvider;
use rusqlite::Connection;

/// Times are milliseconds since the Unix epoch. "Never changes" holds for a
/// row's life.
const MIGRATIONS: &[&str] = &[
    "
-- Who this endpoint is. One row, made once.
CREATE TABLE identity (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    federation TEXT NOT NULL,        -- the SPIFFE trust domain; never changes
    node TEXT NOT NULL,              -- home node
    alias BLOB NOT NULL,             -- 16 bytes; never changes
    device BLOB NOT NULL,            -- 16 bytes; never changes
    agent TEXT,                      -- SPIFFE id of an agent; NULL: a person's device. Never changes
    auth_seed BLOB NOT NULL,         -- Ed25519 seed: authenticates connections; never changes
    credential_key BLOB NOT NULL,    -- Ed25519 public key that signs the account's device credentials
    credential_seed BLOB,            -- its seed; NULL: a linked device, which cannot sign credentials
    account_seed BLOB                -- Ed25519 seed: signs the record; NULL: a linked device
) STRICT;

-- Leaf keys: one for each cipher suite.
CREATE TABLE leaf_keys (
    suite INTEGER PRIMARY KEY,       -- MLS cipher suite
    seed BLOB NOT NULL,              -- Ed25519 seed; never changes
    credential BLOB                  -- SignedDeviceCredential; NULL: the link is not granted yet
) STRICT;

-- Other devices of this account that this one knows of.
CREATE TABLE own_devices (
    device BLOB PRIMARY KEY          -- 16 bytes
) STRICT, WITHOUT ROWID;

-- Persons and organisations whose record was verified.
CREATE TABLE peers (
    alias BLOB PRIMARY KEY,          -- 16 bytes
    node TEXT NOT NULL,              -- home node, as in the record
    credential_key BLOB NOT NULL     -- Ed25519 public key, as in the record
) STRICT, WITHOUT ROWID;

-- Agents listed in the log, replaced with each verified list.
CREATE TABLE agents (
    agent TEXT PRIMARY KEY,          -- SPIFFE id
    mls_key BLOB NOT NULL            -- Ed25519 public key
) STRICT, WITHOUT ROWID;

-- KeyPackages of this device whose private parts MLS keeps.
CREATE TABLE key_packages (
    reference BLOB PRIMARY KEY,      -- KeyPackageRef as MLS writes it
    suite INTEGER NOT NULL,
    last_resort INTEGER NOT NULL,    -- 1: handed out more than once
    made_at_ms INTEGER NOT NULL
) STRICT;

-- Threads: one MLS group each.
CREATE TABLE threads (
    group_id BLOB PRIMARY KEY,       -- 32 bytes; never changes
    peer BLOB NOT NULL,              -- alias of the other side; never changes
    suite INTEGER NOT NULL,          -- never changes: code points are provisional
    state INTEGER NOT NULL,          -- 0 open, 1 closed (nothing more is sent or read)
    epoch INTEGER NOT NULL,          -- of the MLS group as merged here
    pending_commit BLOB,             -- message id of our commit that the hub has not decided
    request_id BLOB,                 -- of the latest letter sent by identifier
    head_sequence INTEGER NOT NULL,  -- everything up to it was seen and its chain holds; 0: nothing yet
    delivered_sequence INTEGER NOT NULL, -- highest that came through the mailbox
    opened_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX threads_by_peer ON threads (peer, opened_at_ms);

-- Devices in a thread, each checked.
CREATE TABLE members (
    group_id BLOB NOT NULL,
    device BLOB NOT NULL,            -- 16 bytes
    alias BLOB NOT NULL,
    leaf_key BLOB NOT NULL,          -- Ed25519 public key
    PRIMARY KEY (group_id, device)
) STRICT, WITHOUT ROWID;

-- What the hub ordered, as far as this device saw it: the hash chain.
CREATE TABLE links (
    group_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    message_id BLOB NOT NULL,
    digest BLOB,                     -- SHA-256 of the MLSMessage; NULL: a Welcome stood for the commit
    chain BLOB NOT NULL,             -- the hub's value
    PRIMARY KEY (group_id, sequence)
) STRICT, WITHOUT ROWID;

-- Deliveries of an epoch that our own undecided commit leads to.
CREATE TABLE parked (
    group_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    position INTEGER NOT NULL,       -- in the mailbox: not acknowledged before it is processed
    delivery BLOB NOT NULL,          -- Delivery, serialised
    PRIMARY KEY (group_id, sequence)
) STRICT, WITHOUT ROWID;

-- What is to be sent, until the hub has decided.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- order of sending
    message_id BLOB NOT NULL UNIQUE, -- 16 bytes; never changes, not even when encrypted anew
    group_id BLOB NOT NULL,
    commits INTEGER NOT NULL,        -- 1: a commit, 0: an application message; never changes
    state INTEGER NOT NULL,          -- 0 queued, 1 submitted, 2 with the home node, 3 accepted, 4 failed
    body BLOB,                       -- plaintext, or what to commit; NULL once decided
    expires_at_ms INTEGER NOT NULL,
    wants_events INTEGER NOT NULL,
    needs_epoch INTEGER NOT NULL,    -- encrypt only when the group has reached it
    submission BLOB,                 -- Submission, serialised; NULL while queued and once decided
    digest BLOB,                     -- SHA-256 of the MLSMessage in it; receipts name it
    content_id BLOB,                 -- MIMI message id, when the body is MIMI content
    accepted_at_ms INTEGER,
    failure TEXT                     -- stable reason; NULL unless failed
) STRICT;
CREATE INDEX outbox_open ON outbox (id) WHERE state < 3;
CREATE INDEX outbox_open_group ON outbox (group_id) WHERE state < 3;
CREATE INDEX outbox_content ON outbox (content_id) WHERE content_id IS NOT NULL;

-- Requests of callers, so that a repeated one sends nothing.
CREATE TABLE requests (
    request_id BLOB PRIMARY KEY,     -- 16 bytes, chosen by the caller
    digest BLOB NOT NULL,            -- SHA-256 over what was asked
    message_id BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_message ON requests (message_id);

-- What came in.
CREATE TABLE inbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id BLOB NOT NULL,
    group_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    sender BLOB NOT NULL,            -- alias
    sender_device BLOB NOT NULL,
    body BLOB NOT NULL,              -- decrypted content
    content_id BLOB,                 -- MIMI message id, when the body is MIMI content
    received_at_ms INTEGER NOT NULL,
    read_at_ms INTEGER,              -- NULL: unread
    UNIQUE (group_id, sequence)
) STRICT;
CREATE INDEX inbox_by_message ON inbox (message_id);
CREATE INDEX inbox_by_content ON inbox (content_id) WHERE content_id IS NOT NULL;

-- Delivery receipts that the home node has not taken yet.
CREATE TABLE receipts (
    position INTEGER PRIMARY KEY,    -- of the message in the mailbox
    receipt BLOB NOT NULL            -- SignedDeliveryReceipt, serialised
) STRICT;

-- Small facts: mailbox position, acknowledged inbox position.
CREATE TABLE marks (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What became of sent messages.
CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id BLOB NOT NULL,
    kind INTEGER NOT NULL,           -- as chancery.agent.v1.EventKind
    occurred_at_ms INTEGER NOT NULL,
    reason TEXT,                     -- of a failure
    UNIQUE (message_id, kind)
) STRICT;

-- What should not happen: somebody ought to look.
CREATE TABLE alarms (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    group_id BLOB,                   -- NULL: not about one thread
    raised_at_ms INTEGER NOT NULL
) STRICT;

-- What was resolved: identifiers by the handle's input, hashed with a secret of this store.
CREATE TABLE handles (
    input BLOB PRIMARY KEY,          -- HMAC-SHA256(store secret, key epoch and OPRF input)
    handle BLOB NOT NULL,            -- 32 bytes
    record_key BLOB NOT NULL         -- 32 bytes
) STRICT, WITHOUT ROWID;

-- Verified records.
CREATE TABLE records (
    handle BLOB PRIMARY KEY,
    alias BLOB,                      -- NULL: proven absent
    checked_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Bytes kept for other modules: the verified statements, the store secret, an own record.
CREATE TABLE keepsakes (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
",
    "
-- One index for each way in which the outbox is read.
DROP INDEX outbox_open;
CREATE INDEX outbox_queued ON outbox (group_id, id) WHERE state = 0;
CREATE INDEX outbox_expiry ON outbox (expires_at_ms) WHERE state < 2;
-- Growing, by when it was last encrypted: the order of submission.
ALTER TABLE outbox ADD COLUMN submitted INTEGER;
-- Epoch in which it was last encrypted.
ALTER TABLE outbox ADD COLUMN made_in INTEGER;
-- That the home node has a submission is not kept (it was state 2): a device
-- that starts again submits what is undecided again.
UPDATE outbox SET state = 1 WHERE state = 2;
UPDATE outbox SET submitted = id WHERE state = 1;
INSERT INTO marks (name, value) SELECT 'submitted', max(id) FROM outbox HAVING count(*) > 0;
CREATE INDEX outbox_submitted ON outbox (submitted) WHERE state = 1;
DELETE FROM marks WHERE name = 'mailbox acknowledged';
",
    "
-- Nodes that keep this endpoint's mailbox, or kept it.
CREATE TABLE homes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    node TEXT NOT NULL,              -- never changes
    endpoint TEXT NOT NULL,          -- host:port; empty: as configured
    through INTEGER NOT NULL,        -- position of its mailbox up to which everything was taken
    left_at_ms INTEGER,              -- NULL: the home
    drained INTEGER NOT NULL         -- 1: a former one has nothing that came before what its successor has
) STRICT;
INSERT INTO homes (node, endpoint, through, drained)
    SELECT node, '', coalesce((SELECT value FROM marks WHERE name = 'mailbox'), 0), 0 FROM identity;
DELETE FROM marks WHERE name = 'mailbox';
ALTER TABLE parked ADD COLUMN home INTEGER NOT NULL DEFAULT 1;
CREATE INDEX parked_of_home ON parked (home, position);
-- Delivery receipts that a home node has not taken yet.
ALTER TABLE receipts RENAME TO receipts_of_one;
CREATE TABLE receipts (
    home INTEGER NOT NULL,
    position INTEGER NOT NULL,       -- of the message in that home's mailbox
    receipt BLOB NOT NULL,           -- SignedDeliveryReceipt, serialised
    PRIMARY KEY (home, position)
) STRICT, WITHOUT ROWID;
INSERT INTO receipts (home, position, receipt) SELECT 1, position, receipt FROM receipts_of_one;
DROP TABLE receipts_of_one;
-- Ed25519 key of the device's connections; NULL: another device linked it.
ALTER TABLE own_devices ADD COLUMN auth_key BLOB;
",
    "
-- The thread's own id: its first group, whose place this one may have taken. `state`: 0
-- open, 1 closed for good, 2 ended (what comes is read), 3 failing (some of it cannot
-- be), 4 broken (nothing is read).
ALTER TABLE threads ADD COLUMN root BLOB NOT NULL DEFAULT x'';
UPDATE threads SET root = group_id;
-- The group that took its place.
ALTER TABLE threads ADD COLUMN successor BLOB;
CREATE INDEX threads_by_root ON threads (root, opened_at_ms);
CREATE INDEX threads_over ON threads (opened_at_ms) WHERE state > 2 AND successor IS NULL;
-- The id under which it is sent: another one in another group.
ALTER TABLE outbox ADD COLUMN sent_as BLOB NOT NULL DEFAULT x'';
UPDATE outbox SET sent_as = message_id;
CREATE UNIQUE INDEX outbox_by_sent ON outbox (sent_as);
-- Names the node's store; NULL: it was never heard of.
ALTER TABLE homes ADD COLUMN incarnation BLOB;
",
    "
-- Seats in broadcast channels: a device's own.
CREATE TABLE seats (
    seat BLOB PRIMARY KEY,           -- 16 bytes, random; never changes
    channel BLOB NOT NULL,           -- 16 bytes; never changes
    owner TEXT NOT NULL,             -- administration of the channel; never changes
    agent TEXT NOT NULL,             -- name of its agent that speaks on the channel
    state INTEGER NOT NULL,          -- 0 the home node is to be asked, 1 asked, 2 in a cell, 3 the home is to hear that it is given up, 4 lost: another one is to be taken
    request BLOB,                    -- TakeSeatRequest, serialised; NULL once the home has it
    invitation BLOB,                 -- 48 bytes; NULL: the channel is open to all
    asked_at_ms INTEGER NOT NULL,
    group_id BLOB,                   -- the cell's MLS group; NULL: in none yet
    change INTEGER NOT NULL,         -- sequence of the cell's last change that was taken
    broadcast INTEGER NOT NULL,      -- sequence of the last broadcast that was seen
    epoch INTEGER,                   -- the chain of keys: of which epoch,
    next INTEGER,                    -- for which broadcast its key is,
    key BLOB,                        -- and the key, 32 bytes
    missed INTEGER,                  -- sequence of a broadcast that the directory's map shows and that is not here,
    missed_at_ms INTEGER             -- and when that was seen first; NULL: an alarm was raised
) STRICT, WITHOUT ROWID;
CREATE INDEX seats_of_channel ON seats (channel);

-- Keys of broadcasts that have not come though later ones have.
CREATE TABLE skipped_keys (
    seat BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    key BLOB NOT NULL,               -- 32 bytes
    kept_until_ms INTEGER NOT NULL,
    PRIMARY KEY (seat, sequence)
) STRICT, WITHOUT ROWID;

-- Content keys of broadcasts from before this device was in the cell, as the agent granted them.
CREATE TABLE earlier_keys (
    channel BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    manifest_hash BLOB NOT NULL,     -- 32 bytes
    content_key BLOB NOT NULL,       -- 32 bytes
    PRIMARY KEY (channel, sequence)
) STRICT, WITHOUT ROWID;

-- Broadcasts that came in.
CREATE TABLE broadcasts (
    position INTEGER PRIMARY KEY AUTOINCREMENT, -- in which they were opened
    channel BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    owner TEXT NOT NULL,
    manifest BLOB NOT NULL,          -- SignedManifest, serialised
    content_key BLOB,                -- 32 bytes; NULL once the content is here
    content BLOB,                    -- MIMI content; NULL: still to be fetched
    failure TEXT,                    -- why there is no content and will be none; NULL: there is none
    read_at_ms INTEGER,
    UNIQUE (channel, sequence)
) STRICT;
CREATE INDEX broadcasts_to_fetch ON broadcasts (position) WHERE content IS NULL AND failure IS NULL;

-- Channels that this agent speaks on.
CREATE TABLE own_channels (
    channel BLOB PRIMARY KEY,
    published BLOB NOT NULL,         -- SignedChannel, serialised: the latest version
    sequence INTEGER NOT NULL,       -- of the last broadcast that was begun
    manifest_hash BLOB NOT NULL,     -- of that one; zeroes: there was none
    wrapped INTEGER NOT NULL         -- sequence of the last one that was wrapped
) STRICT, WITHOUT ROWID;

-- Cells of its channels: numbered at each home node.
CREATE TABLE cells (
    id INTEGER PRIMARY KEY,
    channel BLOB NOT NULL,
    node TEXT NOT NULL,              -- home of its residents; never changes
    number INTEGER NOT NULL,         -- never changes
    group_id BLOB NOT NULL,          -- MLS group; never changes
    change INTEGER NOT NULL,         -- sequence of its last change
    seats INTEGER NOT NULL,          -- how many are in it
    UNIQUE (channel, node, number)
) STRICT;
CREATE INDEX cells_with_room ON cells (channel, node, seats);

-- Seats of residents in its channels.
CREATE TABLE residents (
    seat BLOB PRIMARY KEY,
    channel BLOB NOT NULL,
    node TEXT NOT NULL,
    cell INTEGER,                    -- cells.id; NULL: it waits
    key_package BLOB,                -- MLSMessage; NULL once it is in a cell
    leaves INTEGER NOT NULL,         -- 1: it is to go out
    asked_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX residents_waiting ON residents (channel, node, asked_at_ms) WHERE cell IS NULL;
CREATE INDEX residents_leaving ON residents (cell) WHERE leaves = 1 AND cell IS NOT NULL;

-- Who may take seats in its channels by invitation.
CREATE TABLE invitations (
    id BLOB PRIMARY KEY,             -- 16 bytes, random
    channel BLOB NOT NULL,
    secret BLOB NOT NULL             -- 32 bytes: what the invited person holds
) STRICT, WITHOUT ROWID;

-- The chains of keys of 1,024 cells at a home node each. All of a channel stand at the broadcast
-- behind the one that was wrapped last.
CREATE TABLE cell_keys (
    channel BLOB NOT NULL,
    node TEXT NOT NULL,
    row INTEGER NOT NULL,            -- its first cell is row * 1024
    keys BLOB NOT NULL,              -- u64 epoch and 32 bytes of key for each; zeroes: no cell
    PRIMARY KEY (channel, node, row)
) STRICT, WITHOUT ROWID;

-- What waits for home nodes, in order.
CREATE TABLE cell_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    node TEXT NOT NULL,
    item BLOB NOT NULL               -- node.v1.CellItem, serialised
) STRICT;
CREATE INDEX cell_outbox_of_node ON cell_outbox (node, id);

-- What this agent broadcasts.
CREATE TABLE own_broadcasts (
    channel BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    request_id BLOB NOT NULL UNIQUE, -- 16 bytes, chosen by the caller
    digest BLOB NOT NULL,            -- SHA-256 over what was asked
    state INTEGER NOT NULL,          -- 0 begun, 1 logged, 2 wrapped
    manifest BLOB NOT NULL,          -- Manifest, serialised
    blob BLOB,                       -- what nodes store; NULL once the agent's node has it
    content_key BLOB,                -- 32 bytes; NULL once it is wrapped, unless late joiners may have it
    logged BLOB,                     -- LoggedManifest, serialised; NULL: not logged yet
    cells INTEGER NOT NULL,          -- for how many it was wrapped
    PRIMARY KEY (channel, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX own_broadcasts_open ON own_broadcasts (channel, sequence) WHERE state < 2;
",
    "
-- A cell that is merged into others: its residents take another seat and keep this one until that
-- is in a cell.
ALTER TABLE cells ADD COLUMN merges INTEGER NOT NULL DEFAULT 0;
ALTER TABLE seats ADD COLUMN moves INTEGER NOT NULL DEFAULT 0;
-- When a cell was made: the agent's credential in it is of then.
ALTER TABLE cells ADD COLUMN made_at_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX cells_by_age ON cells (made_at_ms) WHERE merges = 0 AND seats > 0;
-- Sequence of the first broadcast of the cell that a seat came into; NULL: in none yet.
ALTER TABLE seats ADD COLUMN first INTEGER;

-- How many reports of a seat its home has counted; and those that it has not, of whole channels.
ALTER TABLE seats ADD COLUMN reports INTEGER NOT NULL DEFAULT 0;
CREATE TABLE broadcast_reports (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    channel BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    read INTEGER NOT NULL            -- 1: its owner has read it; 0: the device has it
) STRICT;
ALTER TABLE broadcasts ADD COLUMN read INTEGER NOT NULL DEFAULT 0;
CREATE INDEX broadcast_reports_of_channel ON broadcast_reports (channel, id);

-- What became of an agent's broadcasts, as home nodes of residents told last: sums with noise.
CREATE TABLE broadcast_counts (
    channel BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    node TEXT NOT NULL,
    delivered INTEGER NOT NULL,
    read INTEGER NOT NULL,
    PRIMARY KEY (channel, sequence, node)
) STRICT, WITHOUT ROWID;

-- Channels that this device left: none of them is joined again by itself.
CREATE TABLE left_channels (
    channel BLOB PRIMARY KEY         -- 16 bytes
) STRICT, WITHOUT ROWID;

-- Broadcasts of this agent that are to begin later.
CREATE TABLE scheduled_broadcasts (
    request_id BLOB PRIMARY KEY,     -- 16 bytes, chosen by the caller
    digest BLOB NOT NULL,            -- SHA-256 over what was asked
    channel BLOB NOT NULL,
    content BLOB NOT NULL,           -- MIMI content
    emergency INTEGER NOT NULL,
    corrects INTEGER,
    recalls INTEGER,
    expires_at_ms INTEGER NOT NULL,
    begins_at_ms INTEGER NOT NULL,
    refused TEXT                     -- reason for which it has no place in the channel; NULL: it waits
) STRICT, WITHOUT ROWID;
CREATE INDEX scheduled_broadcasts_waiting ON scheduled_broadcasts (begins_at_ms) WHERE refused IS NULL;
",
];

/// Brings a store to the schema of this build.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    mls_tables(connection)?;
    for (version, migration) in (1_u32..).zip(MIGRATIONS).skip(found as usize) {
        let tx = connection.transaction()?;
        tx.execute_batch(migration)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.commit()?;
    }
    Ok(())
}

/// The tables of MLS have their own numbering.
fn mls_tables(connection: &mut Connection) -> Result<(), StoreError> {
    SqliteStorageProvider::<JsonCodec, &mut Connection>::new(connection)
        .run_migrations()
        .map_err(|_| StoreError::Mls)
}
