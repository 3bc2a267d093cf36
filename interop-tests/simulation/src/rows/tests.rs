//! What no hub of the simulation does, because they are honest.

use super::*;
use crate::books::Violation;

#[test]
fn a_second_story_about_one_place_is_noticed() {
    let (mut rows, mut books) = (Rows::default(), Books::default());
    let own = Member { device: DeviceId::from_bytes([1; 16]), alias: Alias::from_bytes([2; 16]) };
    let mut tx = Tx { rows: &mut rows, books: &mut books, own, now: Timestamp::from_millis(0) };
    let mut progress = Progress {
        id: GroupId::from_bytes([3; 32]),
        open: true,
        epoch: 1,
        pending_commit: None,
        head_sequence: 0,
        delivered_sequence: 0,
    };
    let link = |chain| Link {
        sequence: 1,
        message_id: MessageId::from_bytes([4; 16]),
        digest: None,
        chain: Chain::from_bytes([chain; 32]),
    };
    done(chain::begin(&mut tx, &mut progress, &link(5)));
    assert!(done(chain::is_seen(&mut tx, &progress, &link(5))));
    assert!(tx.books.violations.is_empty());
    assert!(done(chain::is_seen(&mut tx, &progress, &link(6))));
    assert_eq!(tx.books.violations, [Violation::FalseAlarm(Alarm::Forked)]);
}
