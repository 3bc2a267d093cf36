//! Channels and manifests, over both databases: logged once, proven, kept through a
//! restart, mirrored, and replayed from the entries alone.

use crate::mesh::{BITS, Backend, FEDERATION, Setting, client, on_both, refusal};
use bytes::Bytes;
use chancery_directory_core::channel::{Channel, JoinRule, SignedChannel, Suite, Text};
use chancery_directory_core::entry::{Event, Leaf};
use chancery_directory_core::lookup::VerifiedHead;
use chancery_directory_core::manifest::{Manifest, NONE, SignedManifest};
use chancery_directory_core::prefix::Prefix;
use chancery_directory_core::replay::Replay;
use chancery_directory_core::statement::{Accreditation, Decision};
use chancery_directory_core::{AgentKey, SigningKey, keys};
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::{Alias, BlobId, ChannelId, Clock as _, Reason};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

on_both!(
    channels_are_logged_listed_and_proven,
    a_sequence_is_broadcast_once,
    a_mirror_shows_channels_and_a_replay_comes_to_the_same
);

/// Longest wait for a mirror, which asks every two seconds.
const DEADLINE: Duration = Duration::from_secs(60);
const ID: ChannelId = ChannelId::from_bytes([3; 16]);

type Client = DirectoryServiceClient<tonic::transport::Channel>;

/// A setting whose member `federal` lists the agent `post`.
struct Owner {
    setting: Setting,
    agent: SigningKey,
}

impl Owner {
    async fn new(backend: Backend) -> Self {
        let setting = Setting::new(backend).await;
        let agent = keys::generate(&*setting.mesh.entropy);
        let owner = Self { setting, agent };
        owner.list(Some(&owner.agent)).await;
        owner
    }

    async fn decide(&self, decision: Decision) {
        let statement = Some(self.setting.mesh.sign(decision));
        let request = wire::SubmitStatementRequest { statement };
        self.setting.client.clone().submit_statement(request).await.unwrap();
    }

    async fn list(&self, agent: Option<&SigningKey>) {
        let Decision::Member(mut member) = self.setting.mesh.member("federal", &self.setting.federal) else {
            panic!("a member's decision is another")
        };
        member.agents = agent.map(|key| ("post".parse().unwrap(), key.into())).into_iter().collect();
        self.decide(Decision::Member(member)).await;
    }

    fn channel(&self) -> Channel {
        let text = Text { name: "News".to_owned(), description: "What is new".to_owned() };
        Channel {
            federation: FEDERATION.to_owned(),
            id: ID,
            version: 1,
            administration: "federal".parse().unwrap(),
            agent: "post".parse().unwrap(),
            texts: BTreeMap::from([("en".to_owned(), text)]),
            join_rule: JoinRule::Open,
            category: 1,
            contact: "mailto:news@federal.example".to_owned(),
            suite: Suite::Hybrid,
            cell_size: 256,
            emergency: false,
            history: 3,
            agent_alias: Alias::from_bytes([4; 16]),
            closed: false,
            for_residents: false,
        }
    }

    fn manifest(&self, sequence: u64, previous_hash: [u8; 32]) -> Manifest {
        let now = self.setting.mesh.clock.now();
        Manifest {
            channel: ID,
            sequence,
            previous_hash,
            blob: BlobId::from_bytes([7; 32]),
            blob_size: 1_000,
            key_commitment: [8; 32],
            category: 1,
            emergency: false,
            created_at: now,
            expires_at: now.after(Duration::from_hours(24)),
            about: None,
        }
    }

    async fn publish(&self, channel: wire::SignedChannel) -> Result<u64, Reason> {
        let request = wire::SubmitChannelRequest { channel: Some(channel) };
        match self.setting.client.clone().submit_channel(request).await {
            Ok(answer) => Ok(answer.into_inner().index),
            refused => Err(refusal(refused).reason),
        }
    }

    async fn broadcast(&self, manifest: &Manifest) -> Result<wire::LoggedManifest, Reason> {
        let request = wire::SubmitManifestRequest { manifest: Some(manifest.sign(&self.agent)) };
        match self.setting.client.clone().submit_manifest(request).await {
            Ok(answer) => Ok(answer.into_inner().logged.unwrap()),
            refused => Err(refusal(refused).reason),
        }
    }

    async fn head(&self, client: &mut Client) -> Result<Option<VerifiedHead>, Reason> {
        let prefix = Prefix::of_channel(&ID, BITS);
        let prefixes = vec![Bytes::copy_from_slice(&prefix.to_bytes())];
        match client.lookup(wire::LookupRequest { prefixes }).await {
            Ok(answer) => {
                let (answer, now) = (answer.into_inner(), self.setting.mesh.clock.now());
                let lookup = self.setting.trust.verify_lookup(answer, &[prefix], BITS, now).unwrap();
                Ok(lookup.channel(&ID).unwrap().cloned())
            }
            refused => Err(refusal(refused).reason),
        }
    }
}

async fn listed(client: &mut Client, administration: &str, start: u64) -> wire::ListChannelsResponse {
    let administration = administration.to_owned();
    let request = wire::ListChannelsRequest { administration, start, limit: 0 };
    client.list_channels(request).await.unwrap().into_inner()
}

async fn channels_are_logged_listed_and_proven(backend: Backend) {
    let mut owner = Owner::new(backend).await;
    let mut client = owner.setting.client.clone();
    assert!(owner.head(&mut client).await.unwrap().is_none());
    let channel = owner.channel();
    let signed = channel.sign(&owner.agent);
    let first = owner.publish(signed.clone()).await.unwrap();
    assert_eq!(owner.publish(signed.clone()).await, Ok(first), "the same again");
    let stranger = keys::generate(&*owner.setting.mesh.entropy);
    let second = Channel { version: 2, category: 2, ..channel.clone() };
    for (wrong, reason) in [
        (second.sign(&stranger), Reason::NotYourChannel),
        (Channel { version: 3, ..second.clone() }.sign(&owner.agent), Reason::ChannelConflict),
        (Channel { emergency: true, ..second.clone() }.sign(&owner.agent), Reason::NotAccredited),
        (Channel { contact: String::new(), ..second.clone() }.sign(&owner.agent), Reason::InvalidField),
    ] {
        assert_eq!(owner.publish(wrong).await, Err(reason));
    }
    let administration = "federal".parse().unwrap();
    owner.decide(Decision::Accreditation(Accreditation { administration, accredited: true })).await;
    let second = Channel { emergency: true, ..second };
    let changed = owner.publish(second.sign(&owner.agent)).await.unwrap();

    // What is listed is in the log, and the map shows the same; also after a restart.
    owner.setting.restart().await;
    let mut client = owner.setting.client.clone();
    for (administration, start, count) in
        [("", 0, 1), ("federal", changed, 1), ("regional", 0, 0), ("", changed + 1, 0)]
    {
        let list = listed(&mut client, administration, start).await;
        assert_eq!(list.channels.len(), count, "{administration} from {start}");
        let checkpoint = owner.setting.trust.verify_checkpoint(&list.checkpoint).unwrap();
        for logged in list.channels {
            let (leaf, inclusion) = (Leaf::from_bytes(logged.entry).unwrap(), logged.inclusion.unwrap());
            checkpoint.includes(&leaf.hash(), inclusion.index, &inclusion.path).unwrap();
            let Event::Channel(signed) = leaf.entry().unwrap().event else { panic!("another entry") };
            let signed = SignedChannel::try_from(signed).unwrap();
            assert_eq!((signed.channel(), inclusion.index), (&second, changed));
            assert!(signed.is_signed_by(&AgentKey::from(&owner.agent)));
        }
    }
    let head = owner.head(&mut client).await.unwrap().unwrap();
    assert_eq!((head.channel.channel(), head.sequence, head.index), (&second, 0, changed));
}

async fn a_sequence_is_broadcast_once(backend: Backend) {
    let mut owner = Owner::new(backend).await;
    assert_eq!(owner.broadcast(&owner.manifest(1, NONE)).await.err().unwrap(), Reason::ChannelUnknown);
    owner.publish(owner.channel().sign(&owner.agent)).await.unwrap();
    let (trust, key) = (owner.setting.trust.clone(), AgentKey::from(&owner.agent));
    let first = owner.manifest(1, NONE);
    let logged = owner.broadcast(&first).await.unwrap();
    let verified = trust.verify_manifest(logged.clone(), &key).unwrap();
    assert_eq!(verified.signed.manifest(), &first);
    let stranger = AgentKey::from(&keys::generate(&*owner.setting.mesh.entropy));
    assert!(trust.verify_manifest(logged.clone(), &stranger).is_err());
    let later = wire::LoggedManifest { sequenced_at_ms: logged.sequenced_at_ms + 1, ..logged };
    assert!(trust.verify_manifest(later, &key).is_err(), "the entry says when");

    let other = Manifest { key_commitment: [9; 32], ..first.clone() };
    let second = owner.manifest(2, verified.signed.hash());
    for restarted in [false, true] {
        if restarted {
            owner.setting.restart().await;
        }
        let again = trust.verify_manifest(owner.broadcast(&first).await.unwrap(), &key).unwrap();
        assert_eq!((again.index, again.sequenced_at), (verified.index, verified.sequenced_at));
        assert_eq!(owner.broadcast(&other).await.err().unwrap(), Reason::ChannelConflict);
        let skipped = owner.manifest(3, verified.signed.hash());
        assert_eq!(owner.broadcast(&skipped).await.err().unwrap(), Reason::ChannelConflict);
    }
    // Two at once of one sequence: one is logged.
    let rival = Manifest { blob_size: 2, ..second.clone() };
    let (one, two) = tokio::join!(owner.broadcast(&second), owner.broadcast(&rival));
    assert_eq!([&one, &two].iter().filter(|result| result.is_ok()).count(), 1);
    let won = SignedManifest::try_from(one.or(two).unwrap().manifest.unwrap()).unwrap();
    let mut client = owner.setting.client.clone();
    let head = owner.head(&mut client).await.unwrap().unwrap();
    assert_eq!((head.sequence, head.manifest_hash), (2, won.hash()));

    // An agent that is listed no more, and a channel that is closed.
    owner.list(None).await;
    let third = owner.manifest(3, won.hash());
    assert_eq!(owner.broadcast(&third).await.err().unwrap(), Reason::NotYourChannel);
    owner.list(Some(&owner.agent)).await;
    let closed = Channel { version: 2, closed: true, ..owner.channel() };
    owner.publish(closed.sign(&owner.agent)).await.unwrap();
    assert_eq!(owner.broadcast(&third).await.err().unwrap(), Reason::ChannelClosed);
}

async fn a_mirror_shows_channels_and_a_replay_comes_to_the_same(backend: Backend) {
    let owner = Owner::new(backend).await;
    owner.publish(owner.channel().sign(&owner.agent)).await.unwrap();
    let mut hash = NONE;
    for sequence in 1..=5 {
        let logged = owner.broadcast(&owner.manifest(sequence, hash)).await.unwrap();
        hash = SignedManifest::try_from(logged.manifest.unwrap()).unwrap().hash();
    }
    let mirror = owner.setting.mesh.mirror(&owner.setting.directory);
    let mut copy = client(&mirror, Arc::clone(&owner.setting.federal.credentials)).await;
    let shown = async {
        loop {
            match owner.head(&mut copy).await {
                Ok(Some(head)) if head.sequence == 5 => return head,
                Ok(_) | Err(Reason::DirectoryUnreachable | Reason::NotAMember) => {}
                Err(reason) => panic!("{reason}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let head = tokio::time::timeout(DEADLINE, shown).await.unwrap();
    assert_eq!(head.manifest_hash, hash);
    let channel = owner.channel().sign(&owner.agent);
    let refused = copy.submit_channel(wire::SubmitChannelRequest { channel: Some(channel) }).await;
    assert_eq!(refusal(refused).reason, Reason::Unsupported);

    let mut client = owner.setting.client.clone();
    let all = client.list_entries(wire::ListEntriesRequest { start: 0, limit: 1_024 }).await.unwrap();
    let mut replay = Replay::new(FEDERATION, owner.setting.trust.governance().clone());
    for entry in all.into_inner().entries {
        replay.take(&Leaf::from_bytes(entry).unwrap()).unwrap();
    }
    assert_eq!(replay.channels().head(&ID).unwrap().latest.unwrap().hash, hash);
}
