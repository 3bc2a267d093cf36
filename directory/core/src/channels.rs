//! What was published of channels and broadcast on them, and the directory's rules for
//! both: who may publish, change, close a channel, and what follows on a broadcast.

use crate::channel::{SignedChannel, place};
use crate::manifest::{NONE, SignedManifest};
use crate::map::Item;
use crate::{AgentKey, Error, FederationState};
use chancery_proto::directory::v1 as wire;
use chancery_types::{ChannelId, NodeId, Timestamp};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Most channels of one administration that are not closed.
pub const MAX_OPEN: usize = 256;
/// How far ahead of the directory's clock an agent's may be.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// What stands for a channel.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its latest version.
    pub channel: SignedChannel,
    /// Entry that holds it.
    pub channel_index: u64,
    /// The latest broadcast.
    pub latest: Option<Latest>,
    /// Latest entry about the channel, and when it was sequenced.
    pub entry: (u64, Timestamp),
}

/// The latest broadcast of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// Its sequence.
    pub sequence: u64,
    /// [`SignedManifest::hash`].
    pub hash: [u8; 32],
}

impl Head {
    /// As the map holds it.
    pub fn item(&self) -> Item {
        let (index, sequenced_at) = self.entry;
        Item::of_channel(place(&self.channel.channel().id), index, sequenced_at, commitment(&self.to_wire()))
    }

    /// As a lookup answers it.
    pub fn to_wire(&self) -> wire::ChannelHead {
        let (sequence, hash) = self.latest.map_or((0, NONE), |latest| (latest.sequence, latest.hash));
        wire::ChannelHead {
            channel: Some(self.channel.wire().clone()),
            sequence,
            manifest_hash: hash.to_vec().into(),
        }
    }
}

/// SHA-256("chancery channel head" ‖ SHA-256(channel as signed) ‖ u64 sequence ‖ manifest hash).
pub fn commitment(head: &wire::ChannelHead) -> [u8; 32] {
    let channel = head.channel.as_ref().map(|signed| Sha256::digest(&signed.channel)).unwrap_or_default();
    Sha256::new()
        .chain_update("chancery channel head")
        .chain_update(channel)
        .chain_update(head.sequence.to_be_bytes())
        .chain_update(&head.manifest_hash)
        .finalize()
        .into()
}

/// All channels. A copy shares what stands with the one it is of.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    heads: BTreeMap<ChannelId, Arc<Head>>,
}

/// What becomes of a channel that is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// To be logged.
    New,
    /// The very same stands, by this entry.
    Repeated(u64),
}

/// What becomes of a manifest that is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It follows on the latest: to be logged.
    Next,
    /// Its sequence was logged before; whether as the same manifest, the log tells.
    Passed,
}

impl Channels {
    /// What stands for a channel.
    pub fn head(&self, id: &ChannelId) -> Option<&Arc<Head>> {
        self.heads.get(id)
    }

    /// What stands for every channel.
    pub fn heads(&self) -> impl Iterator<Item = &Arc<Head>> {
        self.heads.values()
    }

    /// Judges a channel: version 1 of a new id, or the next version of one that stands, by an
    /// agent that its owner lists. Owner and suite never change, and what is closed stays so.
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn judge(
        &self,
        signed: &SignedChannel,
        federation: &str,
        state: &FederationState,
    ) -> Result<Judgement, Error> {
        let channel = signed.channel();
        let standing = self.heads.get(&channel.id);
        if let Some(head) = standing.filter(|head| head.channel.wire().channel == signed.wire().channel) {
            return Ok(Judgement::Repeated(head.channel_index));
        }
        if channel.federation != federation {
            return Err(Error::Field("the channel is for another federation"));
        }
        if !signed.is_signed_by(agent(&channel.administration, &channel.agent, state)?) {
            return Err(Error::NotYourChannel("the channel's signature is not the agent's that it names"));
        }
        if let Some(before) = standing.map(|head| head.channel.channel()) {
            if before.administration != channel.administration {
                return Err(Error::NotYourChannel("a channel never changes its owner"));
            }
            if before.closed {
                return Err(Error::ChannelClosed);
            }
            if before.version.checked_add(1) != Some(channel.version) {
                return Err(Error::ChannelConflict("the channel stands at another version"));
            }
            if before.suite != channel.suite {
                return Err(Error::Field("a channel never changes its cipher suite"));
            }
        } else {
            if channel.version != 1 {
                return Err(Error::ChannelConflict("a channel's first version is 1"));
            }
            let open = |head: &&Arc<Head>| {
                let other = head.channel.channel();
                other.administration == channel.administration && !other.closed
            };
            if self.heads.values().filter(open).count() >= MAX_OPEN {
                return Err(Error::TooLarge(
                    "an administration has at most 256 channels that are not closed",
                ));
            }
        }
        if channel.emergency && !state.is_accredited(&channel.administration) {
            return Err(Error::NotAccredited);
        }
        Ok(Judgement::New)
    }

    /// Judges a manifest: the next of its channel, following on the one before, by the agent that
    /// speaks on it, while that is listed.
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn judge_manifest(
        &self,
        signed: &SignedManifest,
        state: &FederationState,
        now: Timestamp,
    ) -> Result<Place, Error> {
        let manifest = signed.manifest();
        let head = self.heads.get(&manifest.channel).ok_or(Error::ChannelUnknown)?;
        let channel = head.channel.channel();
        if !signed.is_signed_by(agent(&channel.administration, &channel.agent, state)?) {
            return Err(Error::NotYourChannel(
                "the agent that speaks on the channel did not sign the manifest",
            ));
        }
        let (last, hash) = head.latest.map_or((0, NONE), |latest| (latest.sequence, latest.hash));
        if manifest.sequence <= last {
            return Ok(Place::Passed);
        }
        if channel.closed {
            return Err(Error::ChannelClosed);
        }
        if last.checked_add(1) != Some(manifest.sequence) || manifest.previous_hash != hash {
            return Err(Error::ChannelConflict("the manifest does not follow on the channel's latest"));
        }
        if manifest.emergency && !(channel.emergency && state.is_accredited(&channel.administration)) {
            return Err(Error::NotAccredited);
        }
        if manifest.created_at > now.after(CLOCK_SKEW) {
            return Err(Error::Field("the broadcast is from the future"));
        }
        if manifest.expires_at <= now {
            return Err(Error::Field("the broadcast has expired"));
        }
        Ok(Place::Next)
    }

    /// Takes a logged channel into account; gives what stands now and which entry stood before.
    pub fn apply(
        &mut self,
        channel: SignedChannel,
        index: u64,
        sequenced_at: Timestamp,
    ) -> (Arc<Head>, Option<u64>) {
        let id = channel.channel().id;
        let before = self.heads.get(&id);
        let (latest, stood) = (before.and_then(|head| head.latest), before.map(|head| head.entry.0));
        let head = Arc::new(Head { channel, channel_index: index, latest, entry: (index, sequenced_at) });
        self.heads.insert(id, Arc::clone(&head));
        (head, stood)
    }

    /// Takes a logged manifest into account; gives what stands now and which entry stood before.
    ///
    /// # Errors
    /// [`Error::ChannelUnknown`].
    pub fn apply_manifest(
        &mut self,
        manifest: &SignedManifest,
        index: u64,
        sequenced_at: Timestamp,
    ) -> Result<(Arc<Head>, Option<u64>), Error> {
        let before = self.heads.get_mut(&manifest.manifest().channel).ok_or(Error::ChannelUnknown)?;
        let stood = before.entry.0;
        let latest = Some(Latest { sequence: manifest.manifest().sequence, hash: manifest.hash() });
        let head = Arc::new(Head { latest, entry: (index, sequenced_at), ..Head::clone(before) });
        *before = Arc::clone(&head);
        Ok((head, Some(stood)))
    }
}

/// The key of an agent as its administration lists it now.
fn agent<'a>(
    administration: &NodeId,
    name: &NodeId,
    state: &'a FederationState,
) -> Result<&'a AgentKey, Error> {
    let member = state.member(administration);
    member
        .and_then(|member| member.agents.get(name))
        .ok_or(Error::NotYourChannel("the administration lists no such agent"))
}

#[cfg(test)]
mod tests;
