//! Broadcast channels as their owners publish them. Whether one may be logged is
//! [`crate::channels`]'s.

use crate::keys::{self, AgentKey, Purpose, SigningKey};
use crate::statement::array;
use crate::{Error, merkle};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Alias, ChannelId, NodeId};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Longest channel in bytes.
pub const MAX_CHANNEL: usize = 16 * 1024;
/// Most languages.
const MAX_TEXTS: usize = 32;
/// Largest cell.
pub const MAX_CELL: u32 = 4_096;
/// Most broadcasts that somebody who joins may read.
pub const MAX_HISTORY: u32 = 100;
/// Categories are 0 to this.
pub const LAST_CATEGORY: u32 = 7;

/// A channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The federation's name.
    pub federation: String,
    /// Never changes.
    pub id: ChannelId,
    /// 1, then one more with each change.
    pub version: u64,
    /// Who owns it. Never changes.
    pub administration: NodeId,
    /// Which of its agents speaks on it.
    pub agent: NodeId,
    /// Name and description by BCP 47 language tag.
    pub texts: BTreeMap<String, Text>,
    /// Who may join.
    pub join_rule: JoinRule,
    /// Coarse category, 0 to [`LAST_CATEGORY`].
    pub category: u32,
    /// URL where people ask about it.
    pub contact: String,
    /// MLS cipher suite of its cells. Never changes.
    pub suite: Suite,
    /// Most residents in a cell.
    pub cell_size: u32,
    /// Whether it may carry emergencies.
    pub emergency: bool,
    /// How many of the latest broadcasts somebody who joins may read.
    pub history: u32,
    /// The agent's mailbox, to which joins go.
    pub agent_alias: Alias,
    /// Whether nothing is broadcast any more.
    pub closed: bool,
    /// Whether devices of the administration's residents join by themselves.
    pub for_residents: bool,
}

/// What people read about a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
}

/// Who may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinRule {
    /// Whoever wants to.
    Open,
    /// Whoever holds an invitation.
    Invitation,
}

/// MLS cipher suite of cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519.
    Classical = 0x0001,
    /// MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519.
    Hybrid = 0x004f,
}

impl Channel {
    /// Signs as the agent that speaks on it.
    pub fn sign(&self, key: &SigningKey) -> wire::SignedChannel {
        let channel = Bytes::from(wire::Channel::from(self).encode_to_vec());
        let signature = Bytes::copy_from_slice(&keys::sign(Purpose::Channel, &channel, key));
        wire::SignedChannel { channel, signature }
    }
}

/// Where a channel stands in the map: the first 4 bytes of SHA-256("chancery channel" ‖ id).
pub fn place(id: &ChannelId) -> [u8; 4] {
    let [a, b, c, d, ..] = merkle::Hash::from(
        Sha256::new().chain_update("chancery channel").chain_update(id.as_bytes()).finalize(),
    );
    [a, b, c, d]
}

/// A channel as received: its form holds, its signature is not checked yet.
#[derive(Clone)]
pub struct SignedChannel {
    channel: Channel,
    wire: wire::SignedChannel,
}

impl SignedChannel {
    /// What was signed.
    pub const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// As received.
    pub const fn wire(&self) -> &wire::SignedChannel {
        &self.wire
    }

    /// SHA-256 of the channel as signed.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.wire.channel).into()
    }

    /// Whether this agent signed it.
    pub fn is_signed_by(&self, key: &AgentKey) -> bool {
        key.verifies(Purpose::Channel, &self.wire.channel, &self.wire.signature)
    }
}

impl std::fmt::Debug for SignedChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignedChannel(version {})", self.channel.version)
    }
}

impl TryFrom<wire::SignedChannel> for SignedChannel {
    type Error = Error;

    fn try_from(signed: wire::SignedChannel) -> Result<Self, Error> {
        if signed.channel.len() > MAX_CHANNEL {
            return Err(Error::TooLarge("a channel has at most 16 KiB"));
        }
        if signed.signature.len() != keys::SIGNATURE_LENGTH {
            return Err(Error::Field("a signature has not 64 bytes"));
        }
        let channel = wire::Channel::decode(signed.channel.as_ref())
            .map_err(|_| Error::Field("a channel does not parse"))?;
        Ok(Self { channel: channel.try_into()?, wire: signed })
    }
}

impl TryFrom<wire::Channel> for Channel {
    type Error = Error;

    fn try_from(channel: wire::Channel) -> Result<Self, Error> {
        if !(1..=255).contains(&channel.federation.len()) {
            return Err(Error::Field("a federation's name has 1 to 255 characters"));
        }
        if channel.version == 0 || channel.version > i64::MAX.unsigned_abs() {
            return Err(Error::Field("a channel's versions count from 1"));
        }
        let join_rule = match channel.join_rule() {
            wire::JoinRule::Open => JoinRule::Open,
            wire::JoinRule::Invitation => JoinRule::Invitation,
            wire::JoinRule::Unspecified => {
                return Err(Error::Field("a channel is open or by invitation"));
            }
        };
        if !(1..=MAX_TEXTS).contains(&channel.texts.len()) {
            return Err(Error::Field("a channel has texts in 1 to 32 languages"));
        }
        if channel.category > LAST_CATEGORY {
            return Err(Error::Field("a category is 0 to 7"));
        }
        if !is_contact(&channel.contact) {
            return Err(Error::Field(
                "a contact is an https:, mailto: or tel: URL of at most 300 characters",
            ));
        }
        if !(2..=MAX_CELL).contains(&channel.cell_size) {
            return Err(Error::Field("a cell has 2 to 4,096 residents"));
        }
        if channel.history > MAX_HISTORY {
            return Err(Error::Field("somebody who joins may read at most 100 earlier broadcasts"));
        }
        if channel.for_residents && join_rule != JoinRule::Open {
            return Err(Error::Field("a channel that all residents join is open"));
        }
        Ok(Self {
            federation: channel.federation,
            id: array(&channel.channel_id, "a channel id has not 16 bytes").map(ChannelId::from_bytes)?,
            version: channel.version,
            administration: channel.administration.parse()?,
            agent: channel.agent.parse()?,
            texts: channel.texts.into_iter().map(text).collect::<Result<_, _>>()?,
            join_rule,
            category: channel.category,
            contact: channel.contact,
            suite: match channel.cipher_suite {
                0x0001 => Suite::Classical,
                0x004f => Suite::Hybrid,
                _ => return Err(Error::Unsupported("cells are of suite 0x0001 or 0x004F")),
            },
            cell_size: channel.cell_size,
            emergency: channel.emergency,
            history: channel.history,
            agent_alias: array(&channel.agent_alias, "an alias has not 16 bytes").map(Alias::from_bytes)?,
            closed: channel.closed,
            for_residents: channel.for_residents,
        })
    }
}

impl From<&Channel> for wire::Channel {
    fn from(channel: &Channel) -> Self {
        let text = |(tag, text): (&String, &Text)| {
            let (name, description) = (text.name.clone(), text.description.clone());
            (tag.clone(), wire::ChannelText { name, description })
        };
        Self {
            federation: channel.federation.clone(),
            channel_id: channel.id.to_wire(),
            version: channel.version,
            administration: channel.administration.to_string(),
            agent: channel.agent.to_string(),
            texts: channel.texts.iter().map(text).collect(),
            join_rule: match channel.join_rule {
                JoinRule::Open => wire::JoinRule::Open,
                JoinRule::Invitation => wire::JoinRule::Invitation,
            }
            .into(),
            category: channel.category,
            contact: channel.contact.clone(),
            cipher_suite: channel.suite as u32,
            cell_size: channel.cell_size,
            emergency: channel.emergency,
            history: channel.history,
            agent_alias: channel.agent_alias.to_wire(),
            closed: channel.closed,
            for_residents: channel.for_residents,
        }
    }
}

fn text((tag, text): (String, wire::ChannelText)) -> Result<(String, Text), Error> {
    if !is_language_tag(&tag) {
        return Err(Error::Field("a text's language is a BCP 47 tag of at most 35 characters"));
    }
    let readable =
        |text: &str, most: usize| text.chars().count() <= most && !text.chars().any(char::is_control);
    if text.name.is_empty() || !readable(&text.name, 100) {
        return Err(Error::Field("a channel's name has 1 to 100 characters in one line"));
    }
    if !readable(&text.description, 1_000) {
        return Err(Error::Field("a channel's description has at most 1,000 characters in one line"));
    }
    Ok((tag, Text { name: text.name, description: text.description }))
}

/// Letters and digits in parts of 1 to 8, with dashes between (RFC 5646 §2.1, the form alone).
fn is_language_tag(tag: &str) -> bool {
    tag.len() <= 35
        && tag.split('-').all(|part| {
            (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
}

fn is_contact(contact: &str) -> bool {
    let scheme = ["https://", "mailto:", "tel:"].into_iter().find_map(|scheme| contact.strip_prefix(scheme));
    contact.len() <= 300
        && scheme.is_some_and(|rest| !rest.is_empty())
        && contact.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, channel};
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn a_channel_reads_back_and_counts_under_its_agents_key_alone() {
        let world = World::new(&SeededEntropy::new(1));
        let signed = SignedChannel::try_from(channel(&world).sign(&world.agent)).unwrap();
        assert_eq!(signed.channel(), &channel(&world));
        assert!(signed.is_signed_by(&(&world.agent).into()));
        assert!(!signed.is_signed_by(&(&world.account).into()));
        assert_eq!(place(&signed.channel().id), place(&channel(&world).id));
    }

    /// The directory takes the same bytes as the same channel.
    #[test]
    fn signed_again_a_channel_has_the_same_bytes() {
        let world = World::new(&SeededEntropy::new(1));
        let mut channel = channel(&world);
        let text = channel.texts["en"].clone();
        let languages = ["bg", "cs", "da", "de", "el", "es", "et", "fi", "fr"];
        channel.texts.extend(languages.map(|language| (language.to_owned(), text.clone())));
        let first = channel.sign(&world.agent).channel;
        assert!((0..8).all(|_| channel.sign(&world.agent).channel == first));
        assert_eq!(SignedChannel::try_from(channel.sign(&world.agent)).unwrap().channel(), &channel);
    }

    #[test]
    fn what_a_channel_may_not_say_is_refused() {
        let world = World::new(&SeededEntropy::new(1));
        let read = |change: &dyn Fn(&mut wire::Channel)| {
            let mut wire = wire::Channel::from(&channel(&world));
            change(&mut wire);
            Channel::try_from(wire)
        };
        assert!(read(&|_| {}).is_ok());
        let wrong: [&dyn Fn(&mut wire::Channel); 17] = [
            &|c| c.federation.clear(),
            &|c| c.channel_id = Bytes::from_static(&[1; 15]),
            &|c| c.version = 0,
            &|c| c.administration = "Upper".to_owned(),
            &|c| c.agent.clear(),
            &|c| c.texts.clear(),
            &|c| drop(c.texts.insert("no good".to_owned(), c.texts["en"].clone())),
            &|c| c.texts.values_mut().for_each(|text| text.name.clear()),
            &|c| c.texts.values_mut().for_each(|text| text.description = "x".repeat(1_001)),
            &|c| c.texts.values_mut().for_each(|text| text.name = "two\nlines".to_owned()),
            &|c| c.join_rule = 0,
            &|c| c.category = 8,
            &|c| c.contact = "javascript:alert(1)".to_owned(),
            &|c| c.cell_size = 1,
            &|c| c.history = 101,
            &|c| c.agent_alias = Bytes::new(),
            &|c| (c.join_rule, c.for_residents) = (wire::JoinRule::Invitation.into(), true),
        ];
        for (nth, change) in wrong.into_iter().enumerate() {
            assert!(read(change).is_err(), "the {nth}-th");
        }
        assert!(matches!(read(&|c| c.cipher_suite = 0x004d), Err(Error::Unsupported(_))));
    }
}
