//! What a node reads of MLS messages, beside what an MLS library makes of the same bytes: whatever that takes
//! for a message of its kind, the node must read alike.

use crate::Target;
use bytes::{BufMut as _, Bytes, BytesMut};
use chancery_node_core::framing::{self, ContentType};
use chancery_node_core::key_package::{MAX_KEY_PACKAGE, cipher_suite};
use chancery_node_core::welcome::Welcome;
use chancery_types::{GroupId, KeyPackageRef};
use openmls::framing::{MlsMessageBodyIn, MlsMessageIn};
use openmls::prelude::tls_codec::{DeserializeBytes as _, Serialize as _};

/// A PrivateMessage.
pub(crate) const PRIVATE_MESSAGE: Target =
    Target { name: "private_message", run: check_private_message, seeds: private_message_seeds };
/// A Welcome, then which parts of it to cut out.
pub(crate) const WELCOME: Target = Target { name: "welcome", run: check_welcome, seeds: welcome_seeds };
/// A KeyPackage.
pub(crate) const KEY_PACKAGE: Target =
    Target { name: "key_package", run: check_key_package, seeds: key_package_seeds };

const GROUP: GroupId = GroupId::from_bytes([7; 32]);

fn parsed(message: &[u8]) -> Option<MlsMessageBodyIn> {
    MlsMessageIn::tls_deserialize_exact_bytes(message).ok().map(MlsMessageIn::extract)
}

fn check_private_message(bytes: &[u8]) {
    let message = Bytes::copy_from_slice(bytes);
    let Some(MlsMessageBodyIn::PrivateMessage(private)) = parsed(bytes) else {
        let any = [ContentType::Application, ContentType::Commit];
        let taken = any.into_iter().find(|kind| framing::check(&message, &GROUP, 3, *kind).is_ok());
        assert!(taken.is_none(), "a node orders what is no PrivateMessage");
        return;
    };
    let Ok(group) = GroupId::try_from(private.group_id().as_slice()) else { return };
    let epoch = private.epoch().as_u64();
    for (kind, is_it) in [
        (ContentType::Application, private.content_type() == openmls::framing::ContentType::Application),
        (ContentType::Commit, private.content_type() == openmls::framing::ContentType::Commit),
    ] {
        assert!(framing::check(&message, &group, epoch, kind).is_ok() == is_it, "another kind is ordered");
        assert!(framing::check(&message, &group, epoch ^ 1, kind).is_err(), "another epoch is ordered");
        let other = GroupId::from_bytes(group.as_bytes().map(|byte| !byte));
        assert!(framing::check(&message, &other, epoch, kind).is_err(), "another group is ordered");
    }
}

fn check_welcome(bytes: &[u8]) {
    // The last byte says which parts are cut out.
    let Some((chosen, message)) = bytes.split_last() else { return };
    let whole = Bytes::copy_from_slice(message);
    let read = Welcome::parse(&whole);
    let Some(MlsMessageBodyIn::Welcome(welcome)) = parsed(message) else { return };
    let joiners: Option<Vec<_>> = welcome
        .secrets()
        .iter()
        .map(|secrets| KeyPackageRef::try_from(secrets.new_member().as_slice()).ok())
        .collect();
    // Names that are no hashes, as an MLS library takes them and a node does not.
    let Some(joiners) = joiners else { return };
    let read = read.expect("a node does not read a Welcome");
    let wanted: Vec<_> =
        (0..8).filter(|bit| chosen >> bit & 1 == 1).filter_map(|n| joiners.get(n)).copied().collect();
    let cut = read.cut(&wanted).expect("a joiner's part is not found");
    let Some(MlsMessageBodyIn::Welcome(cut)) = parsed(&cut) else { panic!("what is cut out is no Welcome") };
    let names: Vec<_> =
        cut.secrets().iter().map(|secrets| secrets.new_member().as_slice().to_vec()).collect();
    assert!(names == wanted.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>());
}

fn check_key_package(bytes: &[u8]) {
    let suite = cipher_suite(bytes);
    assert!(suite.is_err() || bytes.len() <= MAX_KEY_PACKAGE);
    let Some(MlsMessageBodyIn::KeyPackage(package)) = parsed(bytes) else { return };
    if bytes.len() > MAX_KEY_PACKAGE {
        return;
    }
    let encoded = package.tls_serialize_detached().unwrap();
    let Some([high, low]) = encoded.get(2..4) else { panic!("a KeyPackage without suite") };
    // Another version of MLS is none of ours.
    if encoded.starts_with(&[0, 1]) {
        assert!(suite == Ok(u16::from_be_bytes([*high, *low])), "a KeyPackage's suite is read in two ways");
    }
}

/// Header of a variable-size vector (RFC 9420, section 2.1.2).
fn put_vector(out: &mut BytesMut, bytes: &[u8]) {
    match u16::try_from(bytes.len()).unwrap() {
        short @ 0..=0x3f => out.put_uint(short.into(), 1),
        middle => out.put_uint(u64::from(middle) | 0x4000, 2),
    }
    out.put_slice(bytes);
}

/// A PrivateMessage (RFC 9420, section 6.3) whose secret parts are fillers.
pub(crate) fn private_message(group: &GroupId, epoch: u64, content: ContentType, filler: &[u8]) -> Bytes {
    let mut out = BytesMut::from(&[0, 1, 0, 2][..]);
    put_vector(&mut out, group.as_bytes());
    out.put_u64(epoch);
    out.put_u8(if content == ContentType::Application { 1 } else { 3 });
    for part in [b"".as_slice(), b"sender", filler] {
        put_vector(&mut out, part);
    }
    out.freeze()
}

/// A Welcome (RFC 9420, section 12.4.3.1) for the devices with these KeyPackageRefs, whose
/// secret parts are fillers.
pub(crate) fn welcome(joiners: &[u8], size: usize) -> Bytes {
    let mut secrets = BytesMut::new();
    for joiner in joiners {
        put_vector(&mut secrets, &[*joiner; 32]);
        put_vector(&mut secrets, &[1; 32]);
        put_vector(&mut secrets, &vec![2; size]);
    }
    let mut out = BytesMut::from(&[0, 1, 0, 3, 0, 1][..]);
    put_vector(&mut out, &secrets);
    put_vector(&mut out, &[7; 40]);
    out.freeze()
}

fn private_message_seeds() -> Vec<Vec<u8>> {
    let kinds = [ContentType::Application, ContentType::Commit];
    kinds.into_iter().map(|kind| private_message(&GROUP, 3, kind, &[9; 100]).to_vec()).collect()
}

fn welcome_seeds() -> Vec<Vec<u8>> {
    vec![
        [welcome(&[1, 2, 3], 80).as_ref(), &[5]].concat(),
        [welcome(&[1], 5).as_ref(), &[1]].concat(),
        [welcome(&[], 0).as_ref(), &[0]].concat(),
    ]
}

fn key_package_seeds() -> Vec<Vec<u8>> {
    [include_bytes!("../fixtures/key_package_1").as_slice(), include_bytes!("../fixtures/key_package_79")]
        .map(<[u8]>::to_vec)
        .to_vec()
}
