//! Enrolment: claims and receipts as devices hand them to an authority.

use crate::Target;
use crate::input::message;
use crate::world::{NOW, key, name};
use bytes::Bytes;
use chancery_directory_core::AccountKey;
use chancery_directory_core::enrolment::{AuthoritySigner, Claim, identifier_of, renewal};
use chancery_directory_core::keys::{self, Purpose};
use chancery_proto::directory::v1 as wire;
use chancery_types::Identifier;
use prost::Message as _;
use std::sync::LazyLock;

/// A claim; with an odd first byte the rest is one that an account signs.
pub(crate) const CLAIM: Target = Target { name: "enrolment_claim", run: claim, seeds: claim_seeds };
/// A receipt on its way back to its authority; with an odd first byte the rest is one that
/// the authority gave and an account signs.
pub(crate) const RENEWAL: Target = Target { name: "enrolment_renewal", run: renew, seeds: renewal_seeds };

static AUTHORITY: LazyLock<AuthoritySigner> = LazyLock::new(|| AuthoritySigner::new(name("one"), key(3)));

fn person() -> Identifier {
    Identifier::parse("be-nn", "85073003328").unwrap()
}

fn claim(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let account = key(70);
    let own = mode & 1 == 1;
    let request = if own {
        let signature = keys::sign(Purpose::Enrolment, bytes, &account).to_vec();
        wire::EnrolRequest { claim: bytes.to_vec().into(), signature: signature.into() }
    } else {
        let Some(request) = message(bytes) else { return };
        request
    };
    let Ok(claim) = Claim::verify(&request, AUTHORITY.authority()) else { return };
    assert!(request.claim.len() <= 1024 && claim.account_key == (&account).into(), "another account claims");
    if !own {
        assert!(claim.identifier == person() && claim.code == "CODE" && claim.key_epoch == 1);
    }
    assert!(Claim::verify(&request, &name("two")).is_err(), "a claim counts at another authority");
}

fn claim_seeds() -> Vec<Vec<u8>> {
    let signed = Claim::sign(AUTHORITY.authority(), &person(), ("CODE", 1), &key(70));
    vec![[&[0], signed.encode_to_vec().as_slice()].concat(), [&[1], &*signed.claim].concat()]
}

fn renew(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let (account, own) = (key(70), mode & 1 == 1);
    let request = if own {
        let content = Bytes::copy_from_slice(bytes);
        let signature = keys::sign(Purpose::EnrolmentReceipt, &content, &key(3)).to_vec().into();
        renewal(wire::SignedEnrolmentReceipt { receipt: content, signature }, 2, &account)
    } else {
        let Some(request) = message(bytes) else { return };
        request
    };
    let identifier = request.receipt.as_ref().and_then(|receipt| identifier_of(receipt).ok());
    let Ok(enrolled) = AUTHORITY.enrolled(&request) else { return };
    assert!(identifier.as_ref() == Some(&enrolled.identifier), "a receipt is read in two ways");
    assert!(enrolled.account_key == AccountKey::from(&account), "another account renews");
    assert!(own || (enrolled.identifier == person() && enrolled.key_epoch == 1));
}

fn renewal_seeds() -> Vec<Vec<u8>> {
    let account = key(70);
    let receipt = AUTHORITY.receipt(&person(), &(&account).into(), 1, NOW);
    let content = receipt.receipt.clone();
    let request = renewal(receipt, 2, &account);
    vec![[&[0], request.encode_to_vec().as_slice()].concat(), [&[1], &*content].concat()]
}
