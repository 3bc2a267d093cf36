//! What survives, what is counted, what is refused.

use super::*;
use crate::attachment::seal;
use chancery_types::entropy::SeededEntropy;

fn blob(length: usize, seed: u64) -> SealedBlob {
    seal(vec![seed as u8; length], &SeededEntropy::new(seed)).unwrap()
}

fn spool(folder: &tempfile::TempDir, limit: u64) -> Arc<Spool> {
    Arc::new(Spool::open(folder.path().join("spool"), limit).unwrap())
}

fn files(folder: &tempfile::TempDir) -> usize {
    std::fs::read_dir(folder.path().join("spool")).unwrap().count()
}

#[test]
fn keeps_a_blob_once_and_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let blob = blob(1000, 1);
    let id = blob.seal().id;
    let first = spool(&folder, 1016);
    assert_eq!(first.size(&id).unwrap(), None);
    assert!(matches!(first.read(&id), Err(AttachmentError::Missing)));
    first.put(&blob).unwrap();
    first.put(&blob).unwrap();
    assert_eq!(files(&folder), 1);

    let second = spool(&folder, 1016);
    assert_eq!(second.size(&id).unwrap(), Some(1016));
    assert_eq!(second.read(&id).unwrap(), blob.ciphertext());
    second.put(&blob).unwrap();
    second.remove(&id).unwrap();
    second.remove(&id).unwrap();
    assert_eq!(files(&folder), 0);
    second.put(&blob).unwrap();
}

#[test]
fn is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two, three) = (blob(484, 1), blob(484, 2), blob(484, 3));
    let spool_1000 = spool(&folder, 1000);
    spool_1000.put(&one).unwrap();
    spool_1000.put(&two).unwrap();
    assert!(matches!(spool_1000.put(&three), Err(AttachmentError::Full)));
    assert_eq!(files(&folder), 2);
    // Restarted, it counts what is there.
    let again = spool(&folder, 1000);
    assert!(matches!(again.part(&three.seal().id, 500), Err(AttachmentError::Full)));
    again.remove(&one.seal().id).unwrap();
    // A part counts in full while it is written, then as long as it is.
    let mut part = again.part(&three.seal().id, 500).unwrap().unwrap();
    part.append(&three.ciphertext()[..100]).unwrap();
    assert!(matches!(again.put(&one), Err(AttachmentError::Full)));
    drop(part);
    let small = blob(384, 4);
    again.put(&small).unwrap();
    assert!(matches!(again.part(&three.seal().id, 500), Err(AttachmentError::Full)));
    again.remove(&small.seal().id).unwrap();
    let mut part = again.part(&three.seal().id, 500).unwrap().unwrap();
    assert_eq!(part.length(), 100);
    part.append(&three.ciphertext()[100..]).unwrap();
    part.finish().unwrap();
    assert!(matches!(again.put(&one), Err(AttachmentError::Full)));
    again.remove(&three.seal().id).unwrap();
    again.put(&one).unwrap();
}

#[test]
fn a_part_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let blob = blob(1000, 1);
    let seal = blob.seal();
    let mut part = spool(&folder, 2000).part(&seal.id, seal.size).unwrap().unwrap();
    part.append(&blob.ciphertext()[..700]).unwrap();
    drop(part);

    let spool = spool(&folder, 2000);
    assert_eq!(spool.size(&seal.id).unwrap(), None);
    let mut part = spool.part(&seal.id, seal.size).unwrap().unwrap();
    assert_eq!(part.length(), 700);
    assert!(matches!(spool.part(&seal.id, seal.size), Err(AttachmentError::Busy)));
    assert!(matches!(spool.put(&blob), Err(AttachmentError::Busy)));
    assert!(matches!(spool.remove(&seal.id), Err(AttachmentError::Busy)));
    assert!(matches!(part.append(&[0; 400]), Err(AttachmentError::WrongSize)));
    part.append(&blob.ciphertext()[700..]).unwrap();
    part.finish().unwrap();
    assert_eq!(spool.read(&seal.id).unwrap(), blob.ciphertext());
    assert!(spool.part(&seal.id, seal.size).unwrap().is_none());
    assert_eq!(files(&folder), 1);
}

#[test]
fn what_does_not_hash_to_its_id_never_counts() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(&folder, 2000);
    let blob = blob(100, 1);
    let seal = blob.seal();
    let mut part = spool.part(&seal.id, seal.size).unwrap().unwrap();
    assert!(matches!(spool.part(&BlobId::from_bytes([0; 32]), MAX_BLOB + 1), Err(AttachmentError::TooLarge)));
    part.append(&[0; 116]).unwrap();
    assert!(matches!(part.finish(), Err(AttachmentError::WrongHash)));
    assert_eq!(spool.size(&seal.id).unwrap(), None);
    let mut part = spool.part(&seal.id, seal.size).unwrap().unwrap();
    assert_eq!(part.length(), 0);
    part.append(&blob.ciphertext()[..50]).unwrap();
    assert!(matches!(part.finish(), Err(AttachmentError::WrongSize)));
    // A part that is longer than the blob can be begins anew.
    let part = spool.part(&seal.id, 40).unwrap().unwrap();
    assert_eq!(part.length(), 0);
}

#[test]
fn what_a_crash_left_half_written_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    drop(spool(&folder, 1000));
    std::fs::write(folder.path().join("spool/aa.tmp"), [0; 1000]).unwrap();
    spool(&folder, 1000).put(&blob(984, 1)).unwrap();
    assert_eq!(files(&folder), 1);
}
