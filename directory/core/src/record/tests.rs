//! The form of records.

use super::*;
use crate::testing::World;
use chancery_types::entropy::SeededEntropy;

fn world() -> World {
    World::new(&SeededEntropy::new(7))
}

#[test]
fn malformed_records_are_refused() {
    let world = world();
    let good = world.first_record(1);
    let refused = |signed| SignedRecord::try_from(signed).unwrap_err();
    let long = wire::SignedRecord { record: vec![0; MAX_RECORD + 1].into(), ..good.clone() };
    assert!(matches!(refused(long), Error::TooLarge(_)));
    let short = wire::SignedRecord { signature: Bytes::new(), ..good.clone() };
    assert!(matches!(refused(short), Error::Field(_)));
    let garbage = wire::SignedRecord { record: vec![0xff; 40].into(), ..good.clone() };
    assert!(matches!(refused(garbage), Error::Field(_)));
    assert!(matches!(refused(world.first_record(0)), Error::Field(_)));
    let mut draft = world.draft(1, None);
    draft.sealed_part = vec![0; MAX_SEALED + 1].into();
    assert!(matches!(refused(draft.clone().sign(&world.account)), Error::TooLarge(_)));
    // A closed record has no sealed part, and says so.
    draft.sealed_part = Bytes::new();
    let closed = draft.sign(&world.account);
    assert!(SignedRecord::try_from(closed.clone()).unwrap().is_closed());
    let mut record = wire::Record::decode(closed.record).unwrap();
    record.closed = false;
    let torn = wire::SignedRecord { record: record.encode_to_vec().into(), ..good.clone() };
    assert!(matches!(refused(torn), Error::Field(_)));
    assert_eq!(format!("{:?}", SignedRecord::try_from(good).unwrap()), "SignedRecord(version 1)");
}
