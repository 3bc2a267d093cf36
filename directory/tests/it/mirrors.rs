//! A mirror answers what the directory answers, follows it, and goes on without it.

use crate::mesh::{Backend, Owner, Server, Setting, client, on_both, refusal};
use bytes::Bytes;
use chancery_directory_core::operation;
use chancery_directory_core::prefix::Prefix;
use chancery_directory_core::statement::{Decision, ErasedRecord};
use chancery_directory_core::{VerifiedLookup, keys};
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::{Clock as _, Handle, Reason, Scheme};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

on_both!(a_mirror_follows_and_goes_on_alone, a_mirror_takes_no_writes_and_no_strangers);

/// Longest wait for a mirror, which asks every two seconds.
const DEADLINE: Duration = Duration::from_secs(60);

type Client = DirectoryServiceClient<Channel>;

async fn connect(setting: &Setting, mirror: &Server) -> Client {
    client(mirror, Arc::clone(&setting.federal.credentials)).await
}

/// What the mirror shows once its root covers an entry.
async fn shown(setting: &Setting, mirror: &mut Client, handle: &Handle, after: u64) -> VerifiedLookup {
    let showing = tokio::time::timeout(DEADLINE, shown_by(setting, mirror, handle, after));
    showing.await.unwrap()
}

async fn shown_by(setting: &Setting, mirror: &mut Client, handle: &Handle, after: u64) -> VerifiedLookup {
    let prefix = Prefix::of(handle, crate::mesh::BITS);
    loop {
        let prefixes = vec![Bytes::copy_from_slice(&prefix.to_bytes())];
        match mirror.lookup(wire::LookupRequest { prefixes }).await {
            Ok(answer) => {
                let (answer, now) = (answer.into_inner(), setting.mesh.clock.now());
                let lookup = setting.trust.verify_lookup(answer, &[prefix], crate::mesh::BITS, now).unwrap();
                if lookup.roots()[0].index >= after {
                    return lookup;
                }
            }
            // Nothing is mirrored yet, not even who is a member.
            Err(status) => {
                let reason = chancery_kit::status::from_status(&status).reason;
                assert!(matches!(reason, Reason::DirectoryUnreachable | Reason::NotAMember), "{reason}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn put(setting: &Setting, owner: &Owner, version: u64, previous: Option<u64>) -> u64 {
    let record = setting.draft(owner, version, previous).sign(&owner.account);
    setting.publish(record).await.unwrap().index
}

async fn a_mirror_follows_and_goes_on_alone(backend: Backend) {
    let setting = Setting::new(backend).await;
    let (owner, leaver, other) = (setting.owner(), setting.owner(), setting.owner());
    let first = put(&setting, &owner, 1, None).await;
    let gone = put(&setting, &leaver, 1, None).await;
    let mirror = setting.mesh.mirror(&setting.directory);
    let mut copy = connect(&setting, &mirror).await;
    let (scheme, governs) = (Scheme::E164.into(), setting.state.clone());
    let find = |lookup: &VerifiedLookup, owner: &Owner| {
        lookup.find(&owner.handle, &scheme, &governs).unwrap().map(|record| record.index)
    };
    assert_eq!(find(&shown(&setting, &mut copy, &owner.handle, gone).await, &owner), Some(first));
    assert_eq!(find(&shown(&setting, &mut copy, &other.handle, 0).await, &other), None);

    // Changed, claimed by somebody else, erased.
    let second = put(&setting, &owner, 2, Some(first)).await;
    setting.mesh.clock.advance(Duration::from_secs(1));
    let claimant = owner.with_account(keys::generate(&*setting.mesh.entropy));
    let claim = put(&setting, &claimant, 3, Some(second)).await;
    let [a, b, c, d, ..] = *leaver.handle.as_bytes();
    let erased = ErasedRecord { handle_prefix: [a, b, c, d], index: gone };
    let statement = Some(setting.mesh.sign(Decision::Erasure(vec![erased])));
    let erasing = wire::SubmitStatementRequest { statement };
    let erasing = setting.client.clone().submit_statement(erasing).await.unwrap().into_inner().index;
    let lookup = shown(&setting, &mut copy, &owner.handle, erasing).await;
    assert_eq!(find(&lookup, &owner), Some(second));
    let pending = lookup.pending(&owner.handle, &setting.state).unwrap();
    assert_eq!(pending.map(|record| record.index), Some(claim));
    assert_eq!(find(&shown(&setting, &mut copy, &leaver.handle, erasing).await, &leaver), None);

    // The directory's statements and checkpoint, word for word.
    let mut directory = setting.client.clone();
    let listed = copy.list_statements(wire::ListStatementsRequest { start: 0 }).await.unwrap().into_inner();
    let (checkpoint, state) = setting.trust.verify_statements(listed).unwrap();
    assert_eq!(state.in_force(), setting.state.in_force());
    let theirs = directory.fetch_checkpoint(wire::FetchCheckpointRequest {}).await.unwrap().into_inner();
    assert_eq!(checkpoint.note(), &theirs.checkpoint);

    // Without the directory, and started again without it.
    let endpoint = setting.directory.endpoint.clone();
    let setting = setting.without_directory();
    assert_eq!(find(&shown(&setting, &mut copy, &owner.handle, erasing).await, &owner), Some(second));
    mirror.kill();
    let mirror = setting.mesh.mirror_at(&endpoint);
    let mut copy = connect(&setting, &mirror).await;
    assert_eq!(find(&shown(&setting, &mut copy, &owner.handle, erasing).await, &owner), Some(second));
}

async fn a_mirror_takes_no_writes_and_no_strangers(backend: Backend) {
    let setting = Setting::new(backend).await;
    let owner = setting.owner();
    let mirror = setting.mesh.mirror(&setting.directory);
    let mut copy = connect(&setting, &mirror).await;
    shown(&setting, &mut copy, &owner.handle, 0).await;
    let record = setting.draft(&owner, 1, None).sign(&owner.account);
    let directory = setting.state.directory().unwrap().hpke_public_key;
    let (request, _) = operation::seal(record, &directory).unwrap();
    assert_eq!(refusal(copy.publish(request).await).reason, Reason::Unsupported);
    let statement = Some(setting.mesh.sign(Decision::Erasure(vec![])));
    let submitted = copy.submit_statement(wire::SubmitStatementRequest { statement }).await;
    assert_eq!(refusal(submitted).reason, Reason::Unsupported);

    // Records are for members' nodes, and a thousand at once.
    let mut stranger = client(&mirror, setting.mesh.anonymous()).await;
    let range = |end| wire::ListRecordsRequest { start: 0, end };
    assert_eq!(refusal(stranger.list_records(range(5)).await).reason, Reason::NotAuthenticated);
    assert_eq!(refusal(copy.list_records(range(1_025)).await).reason, Reason::InvalidField);
    let put = put(&setting, &owner, 1, None).await;
    let listed = setting.client.clone().list_records(range(put + 1)).await.unwrap().into_inner().records;
    assert_eq!(listed.iter().map(|record| record.index).collect::<Vec<_>>(), [put]);
}
