//! What evaluators say to each other: signing, and reading what others signed.

use super::Ceremony;
use crate::keys::{self, EvaluatorKey, Purpose, SigningKey};
use crate::statement::array;
use crate::{Error, merkle};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// Longest message in bytes.
const MAX_MESSAGE: usize = 16 * 1024;

pub(super) type Content = wire::ceremony_message::Content;

/// Signs what an evaluator says.
pub(super) fn sign(
    ceremony: &Ceremony,
    index: u32,
    content: Content,
    key: &SigningKey,
) -> wire::SignedCeremonyMessage {
    let message = wire::CeremonyMessage {
        ceremony: Bytes::copy_from_slice(&ceremony.id),
        index,
        content: Some(content),
    };
    let message = Bytes::from(message.encode_to_vec());
    let signature = Bytes::copy_from_slice(&keys::sign(Purpose::CeremonyMessage, &message, key));
    wire::SignedCeremonyMessage { message, signature }
}

/// A message whose signature holds.
pub(super) struct Heard {
    pub(super) index: u32,
    pub(super) content: Content,
    /// SHA-256 of the message.
    pub(super) digest: [u8; 32],
}

/// Reads a message of this ceremony by whoever `key_of` says has its index.
pub(super) fn hear(
    ceremony: &Ceremony,
    signed: &wire::SignedCeremonyMessage,
    key_of: impl Fn(u32) -> Option<EvaluatorKey>,
) -> Result<Heard, Error> {
    if signed.message.len() > MAX_MESSAGE {
        return Err(Error::TooLarge("a ceremony's message has at most 16 KiB"));
    }
    let message = wire::CeremonyMessage::decode(signed.message.clone())
        .map_err(|_| Error::Field("a ceremony's message does not parse"))?;
    if message.ceremony.as_ref() != ceremony.id {
        return Err(Error::Ceremony("a message is of another ceremony"));
    }
    let key = key_of(message.index).ok_or(Error::Ceremony("a message is by nobody of this ceremony"))?;
    if !key.verifies(Purpose::CeremonyMessage, &signed.message, &signed.signature) {
        return Err(Error::Ceremony("a message's signature is wrong"));
    }
    let content = message.content.ok_or(Error::Field("a ceremony's message says nothing"))?;
    Ok(Heard { index: message.index, content, digest: Sha256::digest(&signed.message).into() })
}

/// SHA-256 over digests, in their order.
pub(super) fn digest_of<'a>(digests: impl IntoIterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for digest in digests {
        hash.update(digest);
    }
    hash.finalize().into()
}

/// Who takes part, each with its keys for the dealers' shares.
#[derive(Clone, Debug)]
pub struct Joins {
    parties: Vec<Joined>,
    digest: merkle::Hash,
}

#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) index: u32,
    /// One X25519 key for each dealer, in their order.
    pub(super) share_keys: Vec<[u8; 32]>,
}

impl Joins {
    /// Verifies the joins of a ceremony.
    ///
    /// # Errors
    /// One is not by a party, not in order, or malformed; fewer than the threshold.
    pub fn verify(ceremony: &Ceremony, joins: &[wire::SignedCeremonyMessage]) -> Result<Self, Error> {
        let mut parties: Vec<Joined> = Vec::with_capacity(joins.len());
        let mut digests = Vec::with_capacity(joins.len());
        for signed in joins {
            let (joined, digest) = join(ceremony, signed)?;
            if parties.last().is_some_and(|last| joined.index <= last.index) {
                return Err(Error::Ceremony("joins are not in the order of the parties"));
            }
            parties.push(joined);
            digests.push(digest);
        }
        if parties.len() < ceremony.plan.threshold as usize {
            return Err(Error::Ceremony("fewer parties joined than the threshold"));
        }
        Ok(Self { parties, digest: digest_of(&digests) })
    }

    /// Checks one join by itself.
    ///
    /// # Errors
    /// It is not by a party, or malformed.
    pub fn check(ceremony: &Ceremony, signed: &wire::SignedCeremonyMessage) -> Result<(), Error> {
        join(ceremony, signed).map(drop)
    }

    /// Whether a party joined.
    pub fn has(&self, party: u32) -> bool {
        self.parties.iter().any(|joined| joined.index == party)
    }

    pub(super) fn parties(&self) -> &[Joined] {
        &self.parties
    }

    /// SHA-256 over the SHA-256 of each join's message, in order.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The key to which a dealer seals a party's share.
    pub(super) fn share_key(&self, party: u32, dealer_position: usize) -> Option<&[u8; 32]> {
        self.parties.iter().find(|p| p.index == party)?.share_keys.get(dealer_position)
    }
}

fn join(ceremony: &Ceremony, signed: &wire::SignedCeremonyMessage) -> Result<(Joined, [u8; 32]), Error> {
    let key_of = |index| ceremony.plan.parties.iter().find(|p| p.index == index).map(|party| party.key);
    let heard = hear(ceremony, signed, key_of)?;
    let Content::Join(join) = heard.content else {
        return Err(Error::Ceremony("a message given for a join is none"));
    };
    if join.share_keys.len() != ceremony.dealers.len() {
        return Err(Error::Ceremony("a join has another number of keys than there are dealers"));
    }
    let key = |key: &Bytes| array(key, "an X25519 key has not 32 bytes");
    let share_keys = join.share_keys.iter().map(key).collect::<Result<_, _>>()?;
    Ok((Joined { index: heard.index, share_keys }, heard.digest))
}
