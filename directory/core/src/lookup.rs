//! What a sender, or who reads a channel, verifies of a lookup: that nothing is left out of the places it
//! asked for, down to a root of the map that the log holds; and of a record, before
//! it is believed. An owner's device verifies the same of its own.

use crate::attestation::{CLOCK_SKEW, SchemeName, SignedAttestation, WRONG_SIGNATURE};
use crate::channel::{self, SignedChannel};
use crate::channels;
use crate::entry::{Event, Leaf, RecordChange, SALT_LENGTH};
use crate::keys::Batch;
use crate::map::proof::Place;
use crate::map::{Item, Kind, Sum};
use crate::note::VerifiedCheckpoint;
use crate::prefix::MAX_BITS;
use crate::record::SignedRecord;
use crate::statement::array;
use crate::{Address, Error, FederationState, Prefix, RecordKey, Trust};
use bytes::{Buf as _, Bytes};
use chancery_proto::directory::v1 as wire;
use chancery_types::{ChannelId, Handle, Timestamp};
use prost::{Message as _, encoding};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Most items in one place.
pub const MAX_PLACE: usize = 4_096;
/// Most bytes of its items.
pub const MAX_PLACE_BYTES: usize = 3 * 1024 * 1024;
/// Most prefixes, and so places and roots, of one lookup.
pub const MAX_PREFIXES: usize = 256;
/// The items of a place are none.
const MALFORMED: Error = Error::Proof("the items of a place do not parse");
/// Age of a root from which somebody ought to look at it.
pub const ALARMING_AGE: Duration = Duration::from_hours(1);
/// Age of a root from which it is not believed.
pub const MAX_AGE: Duration = Duration::from_hours(7 * 24);

/// A root of the map that the log holds.
#[derive(Clone, Debug)]
pub struct VerifiedRoot {
    /// The whole map.
    pub sum: Sum,
    /// Index of its entry.
    pub index: u64,
    /// When it was sequenced.
    pub sequenced_at: Timestamp,
    /// Covers the entry.
    pub checkpoint: VerifiedCheckpoint,
}

/// What stands for a channel.
#[derive(Clone, Debug)]
pub struct VerifiedHead {
    /// Its latest version. Whether its owner lists the agent that signed it, who logged it judged.
    pub channel: SignedChannel,
    /// Sequence of the latest broadcast; 0: none.
    pub sequence: u64,
    /// [`crate::manifest::SignedManifest::hash`] of it; zeroes: none.
    pub manifest_hash: [u8; 32],
    /// Index of the latest entry about the channel.
    pub index: u64,
}

/// A record with its place in the log, not judged yet.
#[derive(Clone, Debug)]
struct Found {
    record: SignedRecord,
    item: Item,
}

/// What stands under the prefixes asked for: all of it.
#[derive(Clone)]
pub struct VerifiedLookup {
    roots: Vec<VerifiedRoot>,
    prefixes: Vec<Prefix>,
    bits: u32,
    standing: BTreeMap<Handle, Found>,
    pending: BTreeMap<Handle, Found>,
    channels: BTreeMap<ChannelId, VerifiedHead>,
}

impl Trust {
    /// Verifies an answer to a lookup of `prefixes`, each of `bits` bits: nothing
    /// is left out, and all of it leads to roots of the map in the log. Whether a
    /// record may be believed is judged when it is taken out.
    ///
    /// # Errors
    /// [`Error::Stale`]: a root is older than [`MAX_AGE`]. Otherwise the first thing
    /// that does not hold.
    pub fn verify_lookup(
        &self,
        response: wire::LookupResponse,
        prefixes: &[Prefix],
        bits: u32,
        now: Timestamp,
    ) -> Result<VerifiedLookup, Error> {
        if response.places.len() != prefixes.len() {
            return Err(Error::Proof("a lookup has another number of places than prefixes"));
        }
        if response.roots.len() > MAX_PREFIXES {
            return Err(Error::Proof("a lookup has more than 256 roots"));
        }
        let roots = response.roots.into_iter().map(|root| self.verify_root(root, now));
        let roots = roots.collect::<Result<Vec<_>, _>>()?;
        let mut lookup = VerifiedLookup {
            roots,
            prefixes: prefixes.to_vec(),
            bits,
            standing: BTreeMap::new(),
            pending: BTreeMap::new(),
            channels: BTreeMap::new(),
        };
        for (prefix, place) in prefixes.iter().zip(response.places) {
            lookup.take(*prefix, place)?;
        }
        Ok(lookup)
    }

    fn verify_root(&self, root: wire::LoggedRoot, now: Timestamp) -> Result<VerifiedRoot, Error> {
        let checkpoint = self.verify_checkpoint(&root.checkpoint)?;
        let logged = root.entry.ok_or(Error::Proof("a root of the map comes without its entry"))?;
        let inclusion = logged.inclusion.ok_or(Error::Proof("a root comes without its proof"))?;
        let leaf = Leaf::from_bytes(logged.entry)?;
        checkpoint.includes(&leaf.hash(), inclusion.index, &inclusion.path)?;
        let entry = leaf.entry()?;
        let Event::MapRoot(sum) = entry.event else {
            return Err(Error::Proof("an entry given for a root of the map is none"));
        };
        if entry.sequenced_at > now.after(CLOCK_SKEW) {
            return Err(Error::Proof("a root of the map is from the future, and would never grow old"));
        }
        if now.since(entry.sequenced_at) > MAX_AGE {
            return Err(Error::Stale);
        }
        Ok(VerifiedRoot { sum, index: inclusion.index, sequenced_at: entry.sequenced_at, checkpoint })
    }
}

impl VerifiedLookup {
    fn take(&mut self, prefix: Prefix, place: wire::Place) -> Result<(), Error> {
        const LARGE: Error = Error::Proof("a place of the map is larger than it may be");
        if place.items.len() > MAX_PLACE_BYTES || place.siblings.len() > MAX_BITS as usize {
            return Err(LARGE);
        }
        if fields(place.items.clone(), MAX_PLACE)? > MAX_PLACE {
            return Err(LARGE);
        }
        let listed = wire::MapItems::decode(place.items).map_err(|_| MALFORMED)?.items;
        let root = usize::try_from(place.root).ok().and_then(|root| self.roots.get(root));
        let root = root.ok_or(Error::Proof("a place of the map names no root"))?;
        let (mut items, mut found, mut heads) = (Vec::with_capacity(listed.len()), Vec::new(), Vec::new());
        for item in listed {
            let (item, content) = read_item(item)?;
            if item.index() >= root.index {
                return Err(Error::Proof("an item does not come before its root"));
            }
            match content {
                Content::Record(record) => found.push(Found { record: *record, item }),
                Content::Channel(head) => heads.push(*head),
                Content::Bare if item.is_under(prefix, self.bits) => {
                    return Err(Error::Proof("a record or channel under the prefix is withheld"));
                }
                Content::Bare => {}
            }
            items.push(item);
        }
        let siblings = place.siblings.into_iter().map(Sum::try_from).collect::<Result<_, _>>()?;
        Place { siblings, items }.verify(prefix, self.bits, &root.sum)?;
        for found in found {
            let is_pending = found.item.kind() == Kind::Pending;
            let of = if is_pending { &mut self.pending } else { &mut self.standing };
            let (handle, index) = (*found.record.handle(), found.item.index());
            if of.insert(handle, found).is_some_and(|other| other.item.index() != index) {
                return Err(Error::Proof("two records stand for one handle"));
            }
        }
        for head in heads {
            let (id, index) = (head.channel.channel().id, head.index);
            if self.channels.insert(id, head).is_some_and(|other| other.index != index) {
                return Err(Error::Proof("two heads stand for one channel"));
            }
        }
        Ok(())
    }

    /// The roots that everything leads to.
    pub fn roots(&self) -> &[VerifiedRoot] {
        &self.roots
    }

    /// How old the oldest of them is.
    pub fn age(&self, now: Timestamp) -> Duration {
        self.roots.iter().map(|root| now.since(root.sequenced_at)).max().unwrap_or_default()
    }

    /// Whether a record stands for the handle, to be believed or not.
    pub fn holds(&self, handle: &Handle) -> bool {
        self.standing.contains_key(handle)
    }

    /// The record of a handle for a sender who addressed `scheme`: its
    /// signature, its attestation for that very scheme by an authority
    /// admitted for it at that time, and for a first record that the attestation
    /// was current when it was logged. `None`: nobody enrolled the handle.
    ///
    /// # Errors
    /// The handle was not asked for, or its record is not to be believed.
    pub fn find(
        &self,
        handle: &Handle,
        scheme: &SchemeName,
        federation: &FederationState,
    ) -> Result<Option<VerifiedRecord>, Error> {
        self.judged(&self.standing, handle, Some(scheme), federation, false)
    }

    /// As [`VerifiedLookup::find`] for many handles, their signatures checked together: one
    /// result for each, in order.
    pub fn find_all(
        &self,
        wanted: &[(Handle, SchemeName)],
        federation: &FederationState,
    ) -> Vec<Result<Option<VerifiedRecord>, Error>> {
        let mut batch = Batch::default();
        for Found { record, item } in wanted.iter().filter_map(|(handle, _)| self.standing.get(handle)) {
            record.checked_by(&mut batch);
            for word in words(record) {
                // Without an authority it will not be believed.
                if let Ok(key) = word.authority(federation, given_at(word, item)) {
                    word.checked_by(&mut batch, key);
                }
            }
        }
        // If one is wrong, each is looked at by itself.
        let checked = batch.verifies();
        let find = |(handle, scheme): &(Handle, SchemeName)| {
            self.judged(&self.standing, handle, Some(scheme), federation, checked)
        };
        wanted.iter().map(find).collect()
    }

    /// As its owner sees it, whatever the scheme: the record.
    ///
    /// # Errors
    /// As [`VerifiedLookup::find`].
    pub fn own(
        &self,
        handle: &Handle,
        federation: &FederationState,
    ) -> Result<Option<VerifiedRecord>, Error> {
        self.judged(&self.standing, handle, None, federation, false)
    }

    /// As its owner sees it: the re-enrolment that is pending.
    ///
    /// # Errors
    /// As [`VerifiedLookup::find`].
    pub fn pending(
        &self,
        handle: &Handle,
        federation: &FederationState,
    ) -> Result<Option<VerifiedRecord>, Error> {
        self.judged(&self.pending, handle, None, federation, false)
    }

    /// What stands for a channel. `None`: nobody published it.
    ///
    /// # Errors
    /// The channel's place was not asked for.
    pub fn channel(&self, id: &ChannelId) -> Result<Option<&VerifiedHead>, Error> {
        if !self.prefixes.contains(&Prefix::of_channel(id, self.bits)) {
            return Err(Error::Field("the lookup did not ask for this channel"));
        }
        Ok(self.channels.get(id))
    }

    fn judged(
        &self,
        among: &BTreeMap<Handle, Found>,
        handle: &Handle,
        scheme: Option<&SchemeName>,
        federation: &FederationState,
        checked: bool,
    ) -> Result<Option<VerifiedRecord>, Error> {
        if !self.prefixes.contains(&Prefix::of(handle, self.bits)) {
            return Err(Error::Field("the lookup did not ask for this handle"));
        }
        let Some(Found { record, item }) = among.get(handle) else { return Ok(None) };
        if !checked && !record.is_signed() {
            return Err(Error::Record("the record's signature is wrong"));
        }
        let sequenced_at = item.sequenced_at();
        for word in words(record) {
            // Whoever was admitted when it gave its word stays believed for it.
            let key = word.authority(federation, given_at(word, item))?;
            if !checked && !word.is_signed_by(key) {
                return Err(WRONG_SIGNATURE);
            }
            if scheme.is_some_and(|scheme| word.claim().scheme != *scheme) {
                return Err(Error::AuthorityNotAdmitted);
            }
            if record.version() == 1 {
                // A key that was taken back may sign with any date.
                let then = word.authority(federation, sequenced_at)?;
                if then != key && !word.is_signed_by(then) {
                    return Err(WRONG_SIGNATURE);
                }
                word.claim().current(sequenced_at)?;
            }
        }
        Ok(Some(VerifiedRecord { record: record.clone(), index: item.index(), sequenced_at }))
    }
}

/// Who vouches for a record.
fn words(record: &SignedRecord) -> impl Iterator<Item = &SignedAttestation> {
    [Some(record.attestation()), record.second_attestation()].into_iter().flatten()
}

/// When an authority gave its word, as far as the log can tell.
fn given_at(word: &SignedAttestation, item: &Item) -> Timestamp {
    word.claim().issued_at.after(CLOCK_SKEW).min(item.sequenced_at())
}

/// How many fields a message has, counted up to one more than `most`: an item of two bytes is
/// one of more than a hundred once it is decoded, so they are counted before.
fn fields(mut message: Bytes, most: usize) -> Result<usize, Error> {
    let mut count = 0;
    while message.has_remaining() && count <= most {
        let (tag, kind) = encoding::decode_key(&mut message).map_err(|_| MALFORMED)?;
        let context = encoding::DecodeContext::default();
        encoding::skip_field(kind, tag, &mut message, context).map_err(|_| MALFORMED)?;
        count += 1;
    }
    Ok(count)
}

/// What comes with an item.
enum Content {
    Record(Box<SignedRecord>),
    Channel(Box<VerifiedHead>),
    Bare,
}

fn read_item(item: wire::MapItem) -> Result<(Item, Content), Error> {
    use wire::map_item::Content as Wire;
    let (index, sequenced_at) = (item.index, Timestamp::from_millis(item.sequenced_at_ms));
    let (change, content) = match item.content {
        Some(Wire::Channel(_) | Wire::Bare(wire::BareItem { channel: true, .. })) if item.pending => {
            return Err(Error::Proof("a channel is not pending"));
        }
        Some(Wire::Channel(head)) => {
            let commitment = channels::commitment(&head);
            let channel = head.channel.ok_or(Error::Proof("a channel's item comes without the channel"))?;
            let channel = SignedChannel::try_from(channel)?;
            let item =
                Item::of_channel(channel::place(&channel.channel().id), index, sequenced_at, commitment);
            let manifest_hash = array(&head.manifest_hash, "a manifest's hash has not 32 bytes")?;
            let head = VerifiedHead { channel, sequence: head.sequence, manifest_hash, index };
            return Ok((item, Content::Channel(Box::new(head))));
        }
        Some(Wire::Bare(bare)) if bare.channel => {
            let place = array(&bare.handle_prefix, "a handle's prefix has not 4 bytes")?;
            let commitment = array(&bare.commitment, "a commitment has not 32 bytes")?;
            return Ok((Item::of_channel(place, index, sequenced_at, commitment), Content::Bare));
        }
        Some(Wire::Body(body)) => {
            let record = body.record.ok_or(Error::Proof("an item comes without its record"))?;
            let record: SignedRecord = record.try_into()?;
            let salt: [u8; SALT_LENGTH] = array(&body.salt, "a salt has not 32 bytes")?;
            let change = RecordChange::new(record.handle(), record.previous_index(), &salt, record.wire());
            if record.previous_index().is_some_and(|previous| previous >= index) {
                return Err(Error::Proof("a record's previous entry does not come before it"));
            }
            (change, Content::Record(Box::new(record)))
        }
        Some(Wire::Bare(bare)) => (
            RecordChange {
                handle_prefix: array(&bare.handle_prefix, "a handle's prefix has not 4 bytes")?,
                previous_index: None,
                commitment: array(&bare.commitment, "a commitment has not 32 bytes")?,
                pending: false,
                ends_index: None,
            },
            Content::Bare,
        ),
        None => return Err(Error::Proof("an item of the map is empty")),
    };
    let change = RecordChange { pending: item.pending, ..change };
    Ok((Item::new(&change, index, sequenced_at), content))
}

impl fmt::Debug for VerifiedLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedLookup({} records)", self.standing.len())
    }
}

/// A record that a sender may believe.
#[derive(Clone, Debug)]
pub struct VerifiedRecord {
    /// What the account signed.
    pub record: SignedRecord,
    /// Index of its entry.
    pub index: u64,
    /// When the directory sequenced it.
    pub sequenced_at: Timestamp,
}

impl VerifiedRecord {
    /// Where letters for the handle go.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::CannotOpen`], or the owner sealed something
    /// malformed.
    pub fn open(&self, key: &RecordKey) -> Result<Address, Error> {
        if self.record.is_closed() {
            return Err(Error::Closed);
        }
        Address::open(self.record.sealed_part(), key, self.record.handle(), self.record.version())
    }
}

#[cfg(test)]
mod tests;
