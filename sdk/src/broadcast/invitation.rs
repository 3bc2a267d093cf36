//! Invitations to channels that are not open to all: a secret that the agent gives to whom it
//! invites, by letter or on paper. A seat shows that its device holds one, for this seat alone: so
//! neither a home node nor whoever sees the proof can take another.

use crate::error::EndpointError;
use crate::store::Tx;
use chancery_directory_core::channel::{Channel, JoinRule};
use chancery_types::{ChannelId, SeatId};
use hmac::{Hmac, Mac as _};
use rusqlite::{OptionalExtension as _, params};
use sha2::Sha256;
use std::fmt;
use zeroize::ZeroizeOnDrop;

const CONTEXT: &[u8] = b"chancery invitation v1\0";
const ID: usize = 16;

/// What an invited person holds: 16 bytes that name it, 32 that are secret.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Invitation([u8; ID + 32]);

impl Invitation {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; ID + 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; ID + 32] {
        &self.0
    }

    /// What shows that a seat's device holds it: its id ‖ HMAC-SHA256(secret,
    /// "chancery invitation v1" ‖ 0x00 ‖ channel id ‖ seat id).
    pub(super) fn prove(&self, channel: &ChannelId, seat: &SeatId) -> Vec<u8> {
        let (id, secret) = self.0.split_at(ID);
        [id, &*mac(secret, channel, seat).finalize().into_bytes()].concat()
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invitation")
    }
}

/// Makes one for a channel of this agent's.
///
/// # Errors
/// The store's.
pub(crate) fn make(tx: &Tx<'_>, channel: &ChannelId) -> Result<Invitation, EndpointError> {
    let invitation = Invitation(tx.entropy().array());
    let (id, secret) = invitation.0.split_at(ID);
    tx.sql().execute(
        "INSERT INTO invitations (id, channel, secret) VALUES (?1, ?2, ?3)",
        params![id, channel.as_bytes(), secret],
    )?;
    Ok(invitation)
}

/// Whether a seat may come in.
///
/// # Errors
/// The store's.
pub(super) fn admits(
    tx: &Tx<'_>,
    channel: &Channel,
    seat: &SeatId,
    proof: &[u8],
) -> Result<bool, EndpointError> {
    if channel.join_rule == JoinRule::Open {
        return Ok(true);
    }
    let Some((id, proof)) = proof.split_at_checked(ID) else { return Ok(false) };
    let secret: Option<[u8; 32]> = tx
        .sql()
        .prepare_cached("SELECT secret FROM invitations WHERE id = ?1 AND channel = ?2")?
        .query_row(params![id, channel.id.as_bytes()], |row| row.get(0))
        .optional()?;
    // Compares in constant time.
    Ok(secret.is_some_and(|secret| mac(&secret, &channel.id, seat).verify_slice(proof).is_ok()))
}

fn mac(secret: &[u8], channel: &ChannelId, seat: &SeatId) -> Hmac<Sha256> {
    // HMAC takes keys of any length; a shorter one would only open nothing.
    let mac = Hmac::<Sha256>::new_from_slice(secret).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.chain_update(CONTEXT).chain_update(channel.as_bytes()).chain_update(seat.as_bytes())
}
