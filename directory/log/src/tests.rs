//! The log against a naive tree, across restarts, and damaged.

use crate::{Appender, LogError, LogReader, migrations_with};
use bytes::Bytes;
use chancery_directory_core::entry::Leaf;
use chancery_directory_core::keys;
use chancery_directory_core::merkle::{self, Hash};
use chancery_directory_core::note::CheckpointSigner;
use chancery_kit::store::{DatabasePlace, Migrations, Store};
use chancery_types::entropy::SeededEntropy;
use proptest::prelude::*;
use sqlx::Any;
use sqlx::migrate::Migrator;
use std::path::Path;

fn signer(seed: u64) -> CheckpointSigner {
    CheckpointSigner::new("mesh.example/directory", keys::generate(&SeededEntropy::new(seed))).unwrap()
}

async fn open(folder: &Path) -> (Store<Any>, Appender, LogReader) {
    let none = || Migrator::with_migrations(Vec::new());
    let migrations = migrations_with(&Migrations { sqlite: none(), postgres: none() });
    let file = DatabasePlace::File(folder.join("log.sqlite"));
    let store = Store::open_any(&file, &migrations).await.unwrap();
    let (appender, reader) = Appender::open(store.clone(), signer(1)).await.unwrap();
    (store, appender, reader)
}

fn leaf(index: usize) -> Leaf {
    Leaf::from_bytes(format!("entry {index}").into()).unwrap()
}

fn leaves(range: std::ops::Range<usize>) -> Vec<Leaf> {
    range.map(leaf).collect()
}

/// Root by the definition of RFC 6962, section 2.1.
fn naive_root(leaves: &[Leaf]) -> Hash {
    match leaves {
        [] => merkle::empty_root(),
        [one] => one.hash(),
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            merkle::node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

fn wire(path: &[Hash]) -> Vec<Bytes> {
    path.iter().map(|hash| Bytes::copy_from_slice(hash)).collect()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn every_proof_holds_and_the_root_is_the_naive_one(batches in prop::collection::vec(1_usize..40, 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let (store, mut appender, reader) = open(folder.path()).await;
            let (mut all, mut heads) = (Vec::new(), Vec::new());
            for batch in batches {
                let new = leaves(all.len()..all.len() + batch);
                assert_eq!(appender.append(new.clone()).await.unwrap(), all.len() as u64);
                all.extend(new);
                let head = reader.checkpoint();
                assert_eq!(head.size(), all.len() as u64);
                assert_eq!(*head.root(), naive_root(&all));
                heads.push(head);
            }
            for head in &heads {
                let indices: Vec<_> = (0..head.size()).collect();
                let proofs = reader.inclusion_proofs(&indices, head.size()).await.unwrap();
                for (index, proof) in indices.into_iter().zip(proofs) {
                    let hash = all[usize::try_from(index).unwrap()].hash();
                    head.includes(&hash, index, &wire(&proof)).unwrap();
                    assert_eq!(reader.inclusion_proof(index, head.size()).await.unwrap(), proof);
                }
                for older in heads.iter().filter(|older| older.size() <= head.size()) {
                    let proof = reader.consistency_proof(older.size(), head.size()).await.unwrap();
                    head.extends(older, &wire(&proof)).unwrap();
                }
            }
            let listed = reader.entries(0, 1_024).await.unwrap();
            assert_eq!(listed, all);
            drop(appender);
            let (again, _) = Appender::open(store, signer(1)).await.unwrap();
            assert_eq!(again.next_index(), all.len() as u64);
        });
    }
}

#[test]
fn a_restart_keeps_the_head_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let (_, mut appender, reader) = open(folder.path()).await;
        assert_eq!(reader.checkpoint().size(), 0);
        appender.append(leaves(0..5)).await.unwrap();
        let before = reader.checkpoint();
        let (_, mut appender, reader) = open(folder.path()).await;
        assert_eq!(reader.checkpoint(), before);
        appender.append(leaves(5..9)).await.unwrap();
        let proof = reader.consistency_proof(5, 9).await.unwrap();
        reader.checkpoint().extends(&before, &wire(&proof)).unwrap();
    });
}

#[test]
fn what_was_not_committed_never_was() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let (store, mut appender, reader) = open(folder.path()).await;
        appender.append(leaves(0..3)).await.unwrap();
        let before = reader.checkpoint();
        // The rows go in, then the caller's part of the transaction fails.
        let batch = appender.prepare(leaves(3..6)).unwrap();
        let failed = store.write("test.fail", move |connection| {
            let batch = batch.clone();
            Box::pin(async move {
                batch.write(connection).await?;
                Err::<(), _>(sqlx::Error::RowNotFound)
            })
        });
        failed.await.unwrap_err();
        appender.reload().await.unwrap();
        assert_eq!((reader.checkpoint(), appender.next_index()), (before, 3));
        appender.append(leaves(3..4)).await.unwrap();
        assert_eq!(*reader.checkpoint().root(), naive_root(&leaves(0..4)));
    });
}

#[test]
fn a_second_writer_cannot_fork_the_log() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let (store, mut first, reader) = open(folder.path()).await;
        let (mut second, _) = Appender::open(store, signer(1)).await.unwrap();
        first.append(leaves(0..2)).await.unwrap();
        // Its first try fails and makes it read the head again.
        assert!(matches!(second.append(leaves(7..8)).await, Err(LogError::Store(_))));
        assert_eq!(second.next_index(), 2);
        assert_eq!(reader.entries(0, 10).await.unwrap(), leaves(0..2));
    });
}

#[test]
fn a_log_that_does_not_fit_its_head_is_not_opened() {
    for damage in [
        "DELETE FROM log_entry WHERE position = 4",
        "DELETE FROM log_hash WHERE position = (SELECT MAX(position) FROM log_hash)",
        "UPDATE log_hash SET hash = zeroblob(32) WHERE position = 6",
        "UPDATE log_head SET size = 4",
        "UPDATE log_head SET checkpoint = zeroblob(100)",
    ] {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let (store, mut appender, _) = open(folder.path()).await;
            appender.append(leaves(0..5)).await.unwrap();
            let damaging = store.write("test.damage", move |connection| {
                Box::pin(async move { sqlx::query(damage).execute(connection).await.map(drop) })
            });
            damaging.await.unwrap();
            let opened = Appender::open(store, signer(1)).await;
            assert!(matches!(opened, Err(LogError::Damaged(_))), "{damage}");
        });
    }
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let (store, ..) = open(folder.path()).await;
        let other = Appender::open(store, signer(2)).await;
        assert!(matches!(other, Err(LogError::Damaged(_))), "another key");
    });
}

#[test]
fn what_is_beyond_the_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let (_, mut appender, reader) = open(folder.path()).await;
        appender.append(leaves(0..5)).await.unwrap();
        assert!(matches!(appender.prepare(vec![]), Err(LogError::Range(_))));
        let is_range = |result: Result<Vec<Hash>, LogError>| matches!(result, Err(LogError::Range(_)));
        assert!(is_range(reader.inclusion_proof(5, 5).await));
        assert!(is_range(reader.inclusion_proof(0, 6).await));
        assert!(is_range(reader.consistency_proof(0, 5).await));
        assert!(is_range(reader.consistency_proof(3, 2).await));
        assert!(is_range(reader.consistency_proof(5, 6).await));
        assert_eq!(reader.entries(3, 100).await.unwrap(), leaves(3..5));
        assert!(reader.entries(5, 1).await.unwrap().is_empty());
        assert!(reader.entries(u64::MAX, u32::MAX).await.unwrap().is_empty());
        assert!(reader.entries(0, 0).await.unwrap().is_empty());
    });
}
