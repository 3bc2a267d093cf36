//! The rules for channels and manifests, one by one.

use super::*;
use crate::channel::{Channel, Suite};
use crate::manifest::{About, MAX_LIFE, Manifest};
use crate::testing::{FEDERATION, NOW, World, channel, manifest};
use chancery_types::entropy::SeededEntropy;

struct Setting {
    world: World,
    channels: Channels,
}

impl Setting {
    fn new() -> Self {
        let mut world = World::new(&SeededEntropy::new(5));
        world.list_agent(true);
        Self { world, channels: Channels::default() }
    }

    fn judge(&self, channel: &Channel) -> Result<Judgement, Error> {
        let signed = SignedChannel::try_from(channel.sign(&self.world.agent)).unwrap();
        self.channels.judge(&signed, FEDERATION, &self.world.state)
    }

    fn publish(&mut self, channel: &Channel, index: u64) -> Option<u64> {
        assert_eq!(self.judge(channel), Ok(Judgement::New));
        let signed = SignedChannel::try_from(channel.sign(&self.world.agent)).unwrap();
        self.channels.apply(signed, index, NOW).1
    }

    fn judge_manifest(&self, manifest: &Manifest) -> Result<Place, Error> {
        let signed = SignedManifest::try_from(manifest.sign(&self.world.agent)).unwrap();
        self.channels.judge_manifest(&signed, &self.world.state, NOW)
    }

    fn broadcast(&mut self, manifest: &Manifest, index: u64) -> [u8; 32] {
        assert_eq!(self.judge_manifest(manifest), Ok(Place::Next));
        let signed = SignedManifest::try_from(manifest.sign(&self.world.agent)).unwrap();
        self.channels.apply_manifest(&signed, index, NOW).unwrap();
        signed.hash()
    }
}

#[test]
fn a_channel_is_published_changed_and_closed_by_its_owners_agent() {
    let mut setting = Setting::new();
    let first = channel(&setting.world);
    assert_eq!(
        setting.judge(&Channel { version: 2, ..first.clone() }).unwrap_err().reason().as_str(),
        "CHANNEL_CONFLICT"
    );
    assert_eq!(setting.publish(&first, 10), None);
    assert_eq!(setting.judge(&first), Ok(Judgement::Repeated(10)));
    let second = Channel { version: 2, cell_size: 128, ..first.clone() };
    let wrong = [
        Channel { contact: "tel:112".to_owned(), ..first.clone() },
        Channel { version: 3, ..second.clone() },
        Channel { administration: "regional".parse().unwrap(), ..second.clone() },
        Channel { agent: "other".parse().unwrap(), ..second.clone() },
        Channel { suite: Suite::Classical, ..second.clone() },
        Channel { federation: "other.example".to_owned(), ..second.clone() },
        Channel { emergency: true, ..second.clone() },
    ];
    for (nth, wrong) in wrong.iter().enumerate() {
        assert!(setting.judge(wrong).is_err(), "the {nth}-th");
    }
    let stranger = SignedChannel::try_from(second.sign(&setting.world.account)).unwrap();
    let refused = setting.channels.judge(&stranger, FEDERATION, &setting.world.state);
    assert!(matches!(refused, Err(Error::NotYourChannel(_))));
    assert_eq!(setting.publish(&second, 11), Some(10));
    let closed = Channel { version: 3, closed: true, ..second };
    assert_eq!(setting.publish(&closed, 12), Some(11));
    assert_eq!(setting.judge(&Channel { version: 4, closed: false, ..closed }), Err(Error::ChannelClosed));
    assert_eq!(setting.judge_manifest(&manifest(1, NONE)), Err(Error::ChannelClosed));
}

#[test]
fn emergencies_need_an_accredited_owner_at_both_times() {
    let mut setting = Setting::new();
    let channel = Channel { emergency: true, ..channel(&setting.world) };
    assert_eq!(setting.judge(&channel), Err(Error::NotAccredited));
    setting.world.accredit(true);
    setting.publish(&channel, 10);
    let alarm = Manifest { emergency: true, ..manifest(1, NONE) };
    assert_eq!(setting.judge_manifest(&alarm), Ok(Place::Next));
    setting.world.accredit(false);
    assert_eq!(setting.judge_manifest(&alarm), Err(Error::NotAccredited));
    assert_eq!(setting.judge_manifest(&manifest(1, NONE)), Ok(Place::Next), "what is no emergency goes on");
}

#[test]
fn broadcasts_follow_on_each_other() {
    let mut setting = Setting::new();
    assert_eq!(setting.judge_manifest(&manifest(1, NONE)), Err(Error::ChannelUnknown));
    setting.publish(&channel(&setting.world), 10);
    let first = manifest(1, NONE);
    let hash = setting.broadcast(&first, 11);
    assert_eq!(setting.judge_manifest(&first), Ok(Place::Passed));
    assert_eq!(setting.judge_manifest(&Manifest { blob_size: 3, ..first }), Ok(Place::Passed));
    let next = manifest(2, hash);
    let wrong = [
        manifest(2, [1; 32]),
        manifest(3, hash),
        Manifest { emergency: true, ..next.clone() },
        Manifest { created_at: NOW.after(Duration::from_mins(6)), ..next.clone() },
        Manifest {
            created_at: NOW.before(Duration::from_secs(9)),
            expires_at: NOW.before(Duration::from_secs(1)),
            ..next.clone()
        },
    ];
    for (nth, wrong) in wrong.iter().enumerate() {
        assert!(setting.judge_manifest(wrong).is_err(), "the {nth}-th");
    }
    let correction = Manifest { about: Some(About::Corrects(1)), ..next };
    setting.broadcast(&correction, 12);
    let head = setting.channels.head(&correction.channel).unwrap();
    assert_eq!((head.channel_index, head.entry), (10, (12, NOW)));
}

#[test]
fn what_a_manifest_may_not_say_is_refused() {
    let read = |change: &dyn Fn(&mut wire::Manifest)| {
        let mut wire = wire::Manifest::from(&manifest(2, [1; 32]));
        change(&mut wire);
        Manifest::try_from(wire)
    };
    assert_eq!(read(&|_| {}), Ok(manifest(2, [1; 32])));
    let wrong: [&dyn Fn(&mut wire::Manifest); 11] = [
        &|m| m.sequence = 0,
        &|m| m.sequence = 1,
        &|m| m.previous_hash = vec![0; 32].into(),
        &|m| m.channel_id.truncate(3),
        &|m| m.blob_size = u64::MAX,
        &|m| m.key_commitment.clear(),
        &|m| m.category = 8,
        &|m| m.urgency = 99,
        &|m| m.expires_at_ms = m.created_at_ms,
        &|m| m.expires_at_ms = NOW.after(MAX_LIFE + Duration::from_millis(1)).millis(),
        &|m| m.about = Some(wire::manifest::About::Recalls(2)),
    ];
    for (nth, change) in wrong.into_iter().enumerate() {
        assert!(read(change).is_err(), "the {nth}-th");
    }
}

#[test]
fn an_administration_has_so_many_channels() {
    let mut setting = Setting::new();
    let nth = |nth: u8, high: u8| {
        let mut id = [high; 16];
        id[0] = nth;
        Channel { id: ChannelId::from_bytes(id), ..channel(&setting.world) }
    };
    let all: Vec<_> = (0..=u8::MAX).map(|n| nth(n, 1)).collect();
    let one_more = nth(0, 2);
    for (index, channel) in (10..).zip(&all) {
        setting.publish(channel, index);
    }
    assert!(matches!(setting.judge(&one_more), Err(Error::TooLarge(_))));
    setting.publish(&Channel { version: 2, closed: true, ..all[0].clone() }, 900);
    assert_eq!(setting.judge(&one_more), Ok(Judgement::New));
}
