//! Enrolment: what a device claims, what an authority attests, and the receipt with
//! which the same account key is attested again when handles are made anew. Whether
//! the claim is true is the authority's to check; docs/protocol.md §"Enrolment".

use crate::attestation::{Attestation, SchemeName};
use crate::keys::{self, Purpose, SIGNATURE_LENGTH};
use crate::{AccountKey, AuthorityKey, Error, SigningKey};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Handle, Identifier, NodeId, Timestamp};
use prost::Message as _;
use std::fmt;
use std::time::Duration;

/// How long a record may be put with an attestation.
pub const VALIDITY: Duration = Duration::from_hours(30 * 24);
/// Largest claim or receipt in bytes.
const MAX: usize = 1024;

/// A claim whose account key signed it.
pub struct Claim {
    /// Whose it claims to be.
    pub identifier: Identifier,
    /// Key that is to speak for it.
    pub account_key: AccountKey,
    /// The one-time code, as typed.
    pub code: String,
    /// Key epoch that the device knows.
    pub key_epoch: u32,
}

impl Claim {
    /// Signs a claim to an authority as the account.
    pub fn sign(
        authority: &NodeId,
        identifier: &Identifier,
        (code, key_epoch): (&str, u32),
        account: &SigningKey,
    ) -> wire::EnrolRequest {
        let claim = wire::EnrolmentClaim {
            authority: authority.to_string(),
            scheme: identifier.scheme().as_str().to_owned(),
            value: identifier.value().to_owned(),
            account_key: AccountKey::from(account).to_wire(),
            proof: Some(wire::enrolment_claim::Proof::Code(code.to_owned())),
            key_epoch,
        }
        .encode_to_vec();
        let signature = Bytes::copy_from_slice(&keys::sign(Purpose::Enrolment, &claim, account));
        wire::EnrolRequest { claim: claim.into(), signature }
    }

    /// Checks a claim to this authority.
    ///
    /// # Errors
    /// Malformed, to another authority, or not signed by the account key that it names.
    pub fn verify(request: &wire::EnrolRequest, authority: &NodeId) -> Result<Self, Error> {
        check_length(&request.claim, &request.signature)?;
        let claim = wire::EnrolmentClaim::decode(request.claim.clone())
            .map_err(|_| Error::Field("a claim does not parse"))?;
        if claim.authority != authority.as_str() {
            return Err(Error::Enrolment("the claim is made to another authority"));
        }
        let account_key = AccountKey::try_from(claim.account_key.as_ref())?;
        if !account_key.verifies(Purpose::Enrolment, &request.claim, &request.signature) {
            return Err(Error::Enrolment("the account key did not sign the claim"));
        }
        let Some(wire::enrolment_claim::Proof::Code(code)) = claim.proof else {
            return Err(Error::Unsupported("the proof's kind is unknown to this build"));
        };
        let identifier = identifier(&claim.scheme, &claim.value)?;
        Ok(Self { identifier, account_key, code, key_epoch: claim.key_epoch })
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claim")
    }
}

/// What was once enrolled.
pub struct Enrolled {
    /// The identifier.
    pub identifier: Identifier,
    /// Key that speaks for it.
    pub account_key: AccountKey,
    /// Key epoch in which that was so.
    pub key_epoch: u32,
}

impl fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Enrolled")
    }
}

/// Asks for the attestation of a key epoch, or of a newer one, as the account.
pub fn renewal(
    receipt: wire::SignedEnrolmentReceipt,
    key_epoch: u32,
    account: &SigningKey,
) -> wire::RenewRequest {
    let signature = keys::sign(Purpose::EnrolmentRenewal, &receipt.receipt, account);
    wire::RenewRequest { receipt: Some(receipt), signature: Bytes::copy_from_slice(&signature), key_epoch }
}

/// The identifier that a receipt is for; its signature is the authority's to check.
///
/// # Errors
/// It does not parse.
pub fn identifier_of(receipt: &wire::SignedEnrolmentReceipt) -> Result<Identifier, Error> {
    let receipt = wire::EnrolmentReceipt::decode(receipt.receipt.clone())
        .map_err(|_| Error::Field("a receipt does not parse"))?;
    identifier(&receipt.scheme, &receipt.value)
}

fn identifier(scheme: &str, value: &str) -> Result<Identifier, Error> {
    Identifier::parse(scheme, value).map_err(|_| Error::Field("the identifier is none of its scheme"))
}

fn check_length(content: &Bytes, signature: &Bytes) -> Result<(), Error> {
    if content.len() > MAX {
        return Err(Error::TooLarge("a claim or receipt has at most 1 KiB"));
    }
    if signature.len() != SIGNATURE_LENGTH {
        return Err(Error::Field("a signature has not 64 bytes"));
    }
    Ok(())
}

/// An enrolment authority's key: attests, and gives receipts.
pub struct AuthoritySigner {
    authority: NodeId,
    key: SigningKey,
}

impl AuthoritySigner {
    /// Signs as this authority.
    pub const fn new(authority: NodeId, key: SigningKey) -> Self {
        Self { authority, key }
    }

    /// Its id in the log.
    pub const fn authority(&self) -> &NodeId {
        &self.authority
    }

    /// Its public key, as the log names it.
    pub fn key(&self) -> AuthorityKey {
        (&self.key).into()
    }

    /// Attests that whoever holds `account_key` showed an identifier of
    /// `scheme` whose handle, under `key_epoch`, is `handle`.
    pub fn attest(
        &self,
        scheme: impl Into<SchemeName>,
        handle: Handle,
        account_key: AccountKey,
        key_epoch: u32,
        now: Timestamp,
    ) -> wire::SignedAttestation {
        Attestation {
            authority: self.authority.clone(),
            scheme: scheme.into(),
            handle,
            account_key,
            key_epoch,
            issued_at: now,
            expires_at: now.after(VALIDITY),
        }
        .sign(&self.key)
    }

    /// A receipt for what was proven.
    pub fn receipt(
        &self,
        identifier: &Identifier,
        account_key: &AccountKey,
        key_epoch: u32,
        now: Timestamp,
    ) -> wire::SignedEnrolmentReceipt {
        let receipt = wire::EnrolmentReceipt {
            authority: self.authority.to_string(),
            scheme: identifier.scheme().as_str().to_owned(),
            value: identifier.value().to_owned(),
            account_key: account_key.to_wire(),
            issued_at_ms: now.millis(),
            key_epoch,
        }
        .encode_to_vec();
        let signature = Bytes::copy_from_slice(&keys::sign(Purpose::EnrolmentReceipt, &receipt, &self.key));
        wire::SignedEnrolmentReceipt { receipt: receipt.into(), signature }
    }

    /// Checks a renewal: a receipt of this authority, in the hands of the account
    /// that it names.
    ///
    /// # Errors
    /// Malformed, another's receipt, or another's signature.
    pub fn enrolled(&self, request: &wire::RenewRequest) -> Result<Enrolled, Error> {
        let signed = request.receipt.as_ref().ok_or(Error::Field("the receipt is missing"))?;
        check_length(&signed.receipt, &signed.signature)?;
        check_length(&signed.receipt, &request.signature)?;
        if !self.key().verifies(Purpose::EnrolmentReceipt, &signed.receipt, &signed.signature) {
            return Err(Error::Enrolment("the receipt is not this authority's"));
        }
        let receipt = wire::EnrolmentReceipt::decode(signed.receipt.clone())
            .map_err(|_| Error::Field("a receipt does not parse"))?;
        let account_key = AccountKey::try_from(receipt.account_key.as_ref())?;
        if !account_key.verifies(Purpose::EnrolmentRenewal, &signed.receipt, &request.signature) {
            return Err(Error::Enrolment("the receipt is for another account key"));
        }
        let identifier = identifier(&receipt.scheme, &receipt.value)?;
        Ok(Enrolled { identifier, account_key, key_epoch: receipt.key_epoch })
    }
}

impl fmt::Debug for AuthoritySigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthoritySigner({})", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;
    use proptest::prelude::*;

    fn signer(seed: u64) -> AuthoritySigner {
        AuthoritySigner::new("residents".parse().unwrap(), keys::generate(&SeededEntropy::new(seed)))
    }

    fn person() -> Identifier {
        Identifier::parse("be-nn", "85.07.30-033 28").unwrap()
    }

    #[test]
    fn a_claim_is_its_account_keys_and_for_one_authority() {
        let account = keys::generate(&SeededEntropy::new(1));
        let here: NodeId = "residents".parse().unwrap();
        let request = Claim::sign(&here, &person(), ("CODE", 4), &account);
        let claim = Claim::verify(&request, &here).unwrap();
        assert_eq!((claim.identifier.value(), &*claim.code, claim.key_epoch), (person().value(), "CODE", 4));
        assert_eq!(claim.account_key, (&account).into());
        let elsewhere = Claim::verify(&request, &"others".parse().unwrap());
        assert!(matches!(elsewhere, Err(Error::Enrolment(_))));
        let other = keys::generate(&SeededEntropy::new(2));
        let stolen = Claim::sign(&here, &person(), ("CODE", 4), &other);
        let mixed = wire::EnrolRequest { signature: stolen.signature, ..request };
        assert!(matches!(Claim::verify(&mixed, &here), Err(Error::Enrolment(_))));
    }

    #[test]
    fn a_receipt_counts_in_the_hands_of_its_account() {
        let (authority, account) = (signer(3), keys::generate(&SeededEntropy::new(4)));
        let receipt = authority.receipt(&person(), &(&account).into(), 1, Timestamp::from_millis(5));
        assert_eq!(identifier_of(&receipt).unwrap().value(), person().value());
        let enrolled = authority.enrolled(&renewal(receipt.clone(), 2, &account)).unwrap();
        assert_eq!(enrolled.identifier.value(), person().value());
        assert_eq!((enrolled.account_key, enrolled.key_epoch), ((&account).into(), 1));
        let thief = keys::generate(&SeededEntropy::new(5));
        let wrong = |request| assert!(matches!(authority.enrolled(&request), Err(Error::Enrolment(_))));
        wrong(renewal(receipt.clone(), 2, &thief));
        wrong(renewal(
            signer(6).receipt(&person(), &(&account).into(), 1, Timestamp::from_millis(5)),
            2,
            &account,
        ));
        let mut longer = receipt;
        longer.receipt = [longer.receipt.as_ref(), &[0x28, 1]].concat().into();
        wrong(renewal(longer, 2, &account));
    }

    proptest! {
        #[test]
        fn no_bytes_make_an_authority_panic(content: Vec<u8>, signature: Vec<u8>) {
            let (content, signature) = (Bytes::from(content), Bytes::from(signature));
            let request = wire::EnrolRequest { claim: content.clone(), signature: signature.clone() };
            prop_assert!(Claim::verify(&request, &"residents".parse().unwrap()).is_err());
            let receipt = wire::SignedEnrolmentReceipt { receipt: content, signature: signature.clone() };
            let _ = identifier_of(&receipt);
            let request = wire::RenewRequest { receipt: Some(receipt), signature, key_epoch: 1 };
            prop_assert!(signer(7).enrolled(&request).is_err());
        }
    }
}
