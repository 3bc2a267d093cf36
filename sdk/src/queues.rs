//! The rows and the MLS that the endpoint's core works with.

use crate::alarm;
use crate::error::EndpointError;
use crate::store::Tx;
use crate::thread::{self, Thread, admit, encrypt, receive};
use crate::{home, identity, inbox, outbox};
use chancery_proto::federation::v1::{Delivery, Submission, submission};
use chancery_sdk_core::chain::Link;
use chancery_sdk_core::receive::Envelope;
use chancery_sdk_core::{Alarm, Conclusion, Content, Item, Made, Opened, Place, Progress, Queues, Stand};
use chancery_types::{Alias, Chain, DeviceId, GroupId, MessageId, Refusal, Timestamp};
use prost::Message as _;
use prost::bytes::Bytes;
use rusqlite::{OptionalExtension as _, params};

type Result<T> = std::result::Result<T, EndpointError>;

impl Queues for Tx<'_> {
    type Error = EndpointError;
    type Thread = Thread;

    fn now(&self) -> Timestamp {
        Tx::now(self)
    }

    fn sender(&self) -> Result<(Alias, DeviceId)> {
        identity::identity(self).map(|identity| (identity.alias, identity.device))
    }

    fn thread(&self, id: &GroupId) -> Result<Option<Thread>> {
        thread::find(self, id)
    }

    fn keep_head(&mut self, progress: &Progress) -> Result<()> {
        self.sql()
            .prepare_cached(
                "UPDATE threads SET head_sequence = ?2, delivered_sequence = ?3 WHERE group_id = ?1",
            )?
            .execute(params![progress.id.as_bytes(), progress.head_sequence, progress.delivered_sequence])?;
        Ok(())
    }

    fn keep_pending(&mut self, id: &GroupId, commit: Option<&MessageId>) -> Result<()> {
        self.sql()
            .prepare_cached("UPDATE threads SET pending_commit = ?2 WHERE group_id = ?1")?
            .execute(params![id.as_bytes(), commit.map(MessageId::as_bytes)])?;
        Ok(())
    }

    fn keep_stand(&mut self, id: &GroupId, stand: Stand) -> Result<()> {
        thread::set_stand(self, id, stand)
    }

    fn successor(&self, id: &GroupId) -> Result<Option<GroupId>> {
        let sql = "SELECT successor FROM threads WHERE group_id = ?1";
        let row: Option<Option<[u8; 32]>> =
            self.sql().prepare_cached(sql)?.query_row([id.as_bytes()], |row| row.get(0)).optional()?;
        Ok(row.flatten().map(GroupId::from_bytes))
    }

    fn set_successor(&mut self, id: &GroupId, next: &GroupId) -> Result<()> {
        self.sql()
            .prepare_cached("UPDATE threads SET successor = ?2 WHERE group_id = ?1")?
            .execute([id.as_bytes(), next.as_bytes()])?;
        Ok(())
    }

    fn link(&self, id: &GroupId, sequence: u64) -> Result<Option<Link>> {
        Ok(self
            .sql()
            .prepare_cached(
                "SELECT message_id, digest, chain FROM links WHERE group_id = ?1 AND sequence = ?2",
            )?
            .query_row(params![id.as_bytes(), sequence], |row| {
                Ok(Link {
                    sequence,
                    message_id: MessageId::from_bytes(row.get(0)?),
                    digest: row.get(1)?,
                    chain: Chain::from_bytes(row.get(2)?),
                })
            })
            .optional()?)
    }

    fn chain(&self, id: &GroupId, sequence: u64) -> Result<Option<Chain>> {
        Ok(self
            .sql()
            .prepare_cached("SELECT chain FROM links WHERE group_id = ?1 AND sequence = ?2")?
            .query_row(params![id.as_bytes(), sequence], |row| row.get(0))
            .optional()?
            .map(Chain::from_bytes))
    }

    fn add_link(&mut self, id: &GroupId, link: &Link) -> Result<()> {
        self.sql()
            .prepare_cached(
                "INSERT INTO links (group_id, sequence, message_id, digest, chain) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                id.as_bytes(),
                link.sequence,
                link.message_id.as_bytes(),
                link.digest,
                link.chain.as_bytes()
            ])?;
        Ok(())
    }

    fn forget_links(&mut self, id: &GroupId, below: u64) -> Result<()> {
        self.sql()
            .prepare_cached("DELETE FROM links WHERE group_id = ?1 AND sequence < ?2")?
            .execute(params![id.as_bytes(), below])?;
        Ok(())
    }

    fn park(&mut self, place: Place, id: &GroupId, delivery: &Delivery) -> Result<()> {
        self.sql().execute(
            "INSERT OR IGNORE INTO parked (group_id, sequence, home, position, delivery) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id.as_bytes(), delivery.sequence, place.home, place.position, delivery.encode_to_vec()],
        )?;
        Ok(())
    }

    fn parks(&self, id: &GroupId) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM parked WHERE group_id = ?1)";
        Ok(self.sql().prepare_cached(sql)?.query_row([id.as_bytes()], |row| row.get(0))?)
    }

    fn parked_groups(&self) -> Result<Vec<GroupId>> {
        let mut statement = self.sql().prepare_cached("SELECT DISTINCT group_id FROM parked")?;
        let rows = statement.query_map([], |row| Ok(GroupId::from_bytes(row.get(0)?)))?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }

    fn unpark(&mut self, id: &GroupId) -> Result<Vec<(Place, Delivery)>> {
        let parked: Vec<(Place, Vec<u8>)> = self
            .sql()
            .prepare_cached("DELETE FROM parked WHERE group_id = ?1 RETURNING home, position, delivery")?
            .query_map([id.as_bytes()], |row| {
                Ok((Place { home: row.get(0)?, position: row.get(1)? }, row.get(2)?))
            })?
            .collect::<std::result::Result<_, _>>()?;
        let decoded = |(place, bytes): (Place, Vec<u8>)| Some((place, Delivery::decode(&*bytes).ok()?));
        Ok(parked.into_iter().filter_map(decoded).collect())
    }

    fn first_parked(&self, home: i64) -> Result<Option<u64>> {
        let sql = "SELECT min(position) FROM parked WHERE home = ?1";
        Ok(self.sql().prepare_cached(sql)?.query_row([home], |row| row.get(0))?)
    }

    fn undecided_item(&self, id: &MessageId) -> Result<Option<Item>> {
        Ok(outbox::items(self, "sent_as = ?1 AND state < 3", [id.as_bytes()])?.pop())
    }

    fn undecided(&self, id: &GroupId) -> Result<Vec<Item>> {
        outbox::items(self, "group_id = ?1 AND state < 3 ORDER BY id", [id.as_bytes()])
    }

    fn any_queued(&self, id: &GroupId) -> Result<bool> {
        outbox::any(self, "group_id = ?1 AND state = 0", [id.as_bytes()])
    }

    fn queued(&self, id: &GroupId) -> Result<Vec<Item>> {
        outbox::items(self, "group_id = ?1 AND state = 0 ORDER BY id", [id.as_bytes()])
    }

    fn any_submitted(&self, id: &GroupId) -> Result<bool> {
        outbox::any(self, "group_id = ?1 AND state < 3 AND state > 0", [id.as_bytes()])
    }

    fn any_submitted_before(&self, id: &GroupId, epoch: u64) -> Result<bool> {
        let rest = "group_id = ?1 AND state < 3 AND state = 1 AND commits = 0 AND made_in < ?2";
        outbox::any(self, rest, params![id.as_bytes(), epoch])
    }

    fn overdue(&self, submitted: Timestamp) -> Result<Vec<Item>> {
        let rest = "state < 2 AND expires_at_ms <= ?1 AND (state = 0 OR expires_at_ms <= ?2) LIMIT 128";
        outbox::items(self, rest, [Tx::now(self).millis(), submitted.millis()])
    }

    fn submitted(&mut self, item: &Item, submission: &Submission, digest: &[u8; 32]) -> Result<()> {
        outbox::submitted(self, item, submission, digest)
    }

    fn due(&self, after: u64, most: usize) -> Result<Vec<(u64, Submission)>> {
        outbox::due(self, after, most)
    }

    fn requeue(&mut self, item: &Item, needs_epoch: u64) -> Result<()> {
        outbox::requeue(self, item, needs_epoch)
    }

    fn carry_over(&mut self, id: &GroupId, next: &GroupId) -> Result<()> {
        outbox::carry_over(self, id, next)
    }

    fn conclude(&mut self, item: &Item, conclusion: Conclusion<'_>) -> Result<()> {
        outbox::conclude(self, item, conclusion)
    }

    fn must_follow(&self, home: i64) -> Result<bool> {
        home::must_follow(self, home)
    }

    fn moved_lately(&self) -> Result<bool> {
        home::moved_lately(self)
    }

    fn submit_later(&mut self) -> Result<()> {
        home::submit_later(self)
    }

    fn submissions_wait(&self) -> Result<bool> {
        home::submissions_wait(self)
    }

    fn through(&self, home: i64) -> Result<u64> {
        home::through(self, home)
    }

    fn receipts(&self, home: i64, after: u64, through: u64, most: usize) -> Result<Vec<(u64, Bytes)>> {
        let mut statement = self.sql().prepare_cached(
            "SELECT position, receipt FROM receipts WHERE home = ?1 AND position > ?2 AND position <= ?3 \
             ORDER BY position LIMIT ?4",
        )?;
        let rows = statement.query_map(params![home, after, through, most], |row| {
            Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?.into()))
        })?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }

    fn receipt_again(&mut self, envelope: &Envelope<'_>) -> Result<()> {
        inbox::receipt_again(self, envelope)
    }

    fn make(&mut self, thread: &Thread, item: &Item) -> Result<Made> {
        let Some(body) = item.body.as_deref() else {
            return Err(crate::store::StoreError::Row { table: "outbox", column: "body" }.into());
        };
        let made = if item.commits {
            admit::stage(self, thread, body).map(|commit| commit.map(submission::Body::Commit))
        } else {
            encrypt::encrypt(self, thread, item, body)
                .map(|message| Some(submission::Body::Application(message.into())))
        };
        match made {
            Ok(Some(body)) => Ok(Made::Body(body)),
            // Somebody else brought the devices in.
            Ok(None) => Ok(Made::Needless),
            Err(error @ EndpointError::Store(_)) => Err(error),
            Err(error) => Ok(Made::Impossible(Refusal::from(error).reason)),
        }
    }

    fn merge(&mut self, thread: &mut Thread) -> Result<()> {
        admit::merge(self, thread)
    }

    fn abandon(&mut self, thread: &mut Thread) -> Result<()> {
        admit::abandon(self, thread)
    }

    fn join(&mut self, envelope: &Envelope<'_>, last_try: bool) -> Result<Opened<()>> {
        receive::welcome(self, envelope, last_try)
    }

    fn open(
        &mut self,
        thread: &mut Thread,
        envelope: &Envelope<'_>,
        last_try: bool,
    ) -> Result<Opened<Content>> {
        receive::open(self, thread, envelope, last_try)
    }

    fn raise(&mut self, alarm: Alarm, id: Option<&GroupId>) -> Result<()> {
        alarm::raise(self, alarm, id)
    }
}
