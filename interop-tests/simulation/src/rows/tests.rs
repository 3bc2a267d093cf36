//! What no run shows: hubs there are honest, and outcomes stand in line with deliveries.

use super::*;
use crate::books::Violation;
use chancery_sdk_core::acknowledge::acknowledgement;

const GROUP: GroupId = GroupId::from_bytes([3; 32]);

fn tx<'a>(rows: &'a mut Rows, books: &'a mut Books) -> Tx<'a> {
    let own = Member { device: DeviceId::from_bytes([1; 16]), alias: Alias::from_bytes([2; 16]) };
    Tx { rows, books, own, now: Timestamp::from_millis(0) }
}

#[test]
fn a_second_story_about_one_place_is_noticed() {
    let (mut rows, mut books) = (Rows::default(), Books::default());
    let mut tx = tx(&mut rows, &mut books);
    let mut progress = progress(GROUP, tx.own.alias, 1, tx.now);
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

#[test]
fn what_waits_is_not_acknowledged() {
    let (mut rows, mut books) = (Rows { through: 5, ..Rows::default() }, Books::default());
    let mut tx = tx(&mut rows, &mut books);
    let through = |tx: &Tx<'_>| done(acknowledgement(tx, HOME, 0)).map(|ready| ready.through);
    assert_eq!(through(&tx), Some(5));
    done(tx.park(Place { home: HOME, position: 3 }, &GROUP, &Delivery::default()));
    assert_eq!(through(&tx), Some(2), "nor what stands behind it");
    done(tx.unpark(&GROUP));
    assert_eq!(through(&tx), Some(5));
}
