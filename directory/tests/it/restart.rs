//! Stopped, killed, started again: what was answered stands.

use crate::mesh::{Backend, Owner, Setting, on_both};
use chancery_directory_core::VerifiedCheckpoint;
use chancery_proto::directory::v1 as wire;
use chancery_types::Scheme;

on_both!(a_restart_keeps_head_records_and_answers, nothing_answered_is_lost_when_it_is_killed);

async fn head(setting: &Setting) -> VerifiedCheckpoint {
    let answer = setting.client.clone().fetch_checkpoint(wire::FetchCheckpointRequest {}).await.unwrap();
    setting.trust.verify_checkpoint(&answer.into_inner().checkpoint).unwrap()
}

async fn check_extends(setting: &Setting, older: &VerifiedCheckpoint) {
    let newer = head(setting).await;
    let sizes = wire::ProveConsistencyRequest { old_size: older.size(), new_size: newer.size() };
    let path = setting.client.clone().prove_consistency(sizes).await.unwrap().into_inner().path;
    newer.extends(older, &path).unwrap();
}

async fn a_restart_keeps_head_records_and_answers(backend: Backend) {
    let mut setting = Setting::new(backend).await;
    let owner = setting.owner();
    let record = setting.draft(&owner, 1, None).sign(&owner.account);
    let published = setting.publish(record.clone()).await.unwrap();
    let before = head(&setting).await;
    setting.restart().await;
    assert_eq!(head(&setting).await, before);
    assert_eq!(setting.publish(record).await.unwrap().index, published.index);
    let change = setting.draft(&owner, 2, Some(published.index)).sign(&owner.account);
    setting.publish(change).await.unwrap();
    check_extends(&setting, &before).await;
}

async fn nothing_answered_is_lost_when_it_is_killed(backend: Backend) {
    let mut setting = Setting::new(backend).await;
    let mut acknowledged: Vec<(Owner, u64)> = Vec::new();
    for _ in 0..3 {
        let owners: Vec<_> = (0..24).map(|_| setting.owner()).collect();
        let mut tasks = tokio::task::JoinSet::new();
        let shared = std::sync::Arc::new(setting);
        for owner in owners {
            let shared = std::sync::Arc::clone(&shared);
            tasks.spawn(async move {
                let record = shared.draft(&owner, 1, None).sign(&owner.account);
                (shared.publish(record).await, owner)
            });
        }
        let newest = head(&shared).await;
        // Killed while most are under way.
        for _ in 0..5 {
            let (result, owner) = tasks.join_next().await.unwrap().unwrap();
            let published = result.unwrap();
            acknowledged.push((owner, published.index));
        }
        tasks.shutdown().await;
        setting = std::sync::Arc::into_inner(shared).unwrap();
        setting = setting.killed().await;
        check_extends(&setting, &newest).await;
    }
    for (owner, index) in &acknowledged {
        let lookup = setting.verified(&[owner.handle]).await;
        let found = lookup.find(&owner.handle, &Scheme::E164.into(), &setting.state).unwrap();
        assert_eq!(found.map(|f| f.index), Some(*index));
    }
    assert_eq!(acknowledged.len(), 15);
}
