//! What a call or a batch changes is one transaction: when any table refuses a row,
//! nothing has happened, and the same may come again.

use super::*;
use chancery_types::Refusal;

const TABLES: [&str; 5] = ["mls_group", "member", "submission", "outbox", "mailbox"];

impl Side {
    async fn execute(&self, statement: String) {
        self.store
            .change("execute", move |tx| {
                let statement = sqlx::AssertSqlSafe(statement.clone());
                Box::pin(
                    async move { sqlx::query(statement).execute(&mut *tx.tables.connection).await.map(drop) },
                )
            })
            .await
            .unwrap();
    }

    /// The table takes no row from now on.
    async fn breaks(&self, table: &str) {
        let refuse = "BEGIN SELECT RAISE(ABORT, 'broken'); END";
        self.execute(format!("CREATE TRIGGER broken BEFORE INSERT ON {table} {refuse}")).await;
    }

    async fn mend(&self) {
        self.execute("DROP TRIGGER broken".to_owned()).await;
    }

    /// Takes what waits for it at another node.
    async fn receive(&self, from: &Self) -> Result<(), Refusal> {
        let waiting = crate::store::outbox::next(&from.store, &self.store.here, 0, 256).await.unwrap();
        let parcels = waiting.iter().map(|w| wire::Parcel::decode(w.parcel.clone()).unwrap()).collect();
        let input: Arc<(NodeId, Vec<wire::Parcel>)> = Arc::new((from.store.here.clone(), parcels));
        self.store
            .change("receive", move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { batch::receive(tx, &input.0, &input.1).await.map(drop) })
            })
            .await
    }
}

#[tokio::test]
async fn a_submission_and_its_fan_out_are_one() {
    for table in TABLES {
        // Copies for the sender's other device stand in a mailbox.
        let (a, b) = (side("a", ANNA, &[10, 11]).await, side("b", BERT, &[20]).await);
        a.breaks(table).await;
        let submissions = || vec![opening(), letter(3, ANNA, 10)];
        let failed = a
            .store
            .change("submit", move |tx| {
                Box::pin(async move { submit::submit(tx, &name("a"), &submissions()).await.map(drop) })
            })
            .await;
        assert_eq!(failed.unwrap_err().reason, Reason::Internal, "{table}");
        for untouched in TABLES {
            assert_eq!(a.count(untouched).await, 0, "{untouched} when {table} takes nothing");
        }
        a.mend().await;
        a.submit("a", submissions()).await;
        a.hand_over(&b, false).await;
        assert_eq!(b.read(BERT, 20).await.len(), 2, "{table}");
    }
}

#[tokio::test]
async fn a_batch_and_what_is_remembered_of_it_are_one() {
    for table in ["received", "route", "mailbox"] {
        let (a, b) = thread().await;
        b.breaks(table).await;
        assert_eq!(b.receive(&a).await.unwrap_err().reason, Reason::Internal, "{table}");
        b.mend().await;
        b.receive(&a).await.unwrap();
        assert_eq!(b.read(BERT, 20).await.len(), 2, "{table}");
    }
}

#[tokio::test]
async fn an_acknowledgement_and_its_reports_are_one() {
    for table in ["outbox", "mailbox_cursor"] {
        let (a, b) = thread().await;
        a.hand_over(&b, false).await;
        b.breaks(table).await;
        let failed = b
            .store
            .change("acknowledge", |tx| {
                Box::pin(async move {
                    let receipts = HashMap::from([(id(3), bytes::Bytes::from_static(b"receipt"))]);
                    let all = Acknowledgement { alias: BERT, device: device(20), through: 2, receipts };
                    mailbox::acknowledge(tx, &[all]).await
                })
            })
            .await;
        assert!(failed.is_err(), "{table}");
        b.mend().await;
        assert_eq!(b.read(BERT, 20).await.len(), 2, "{table}");
        b.acknowledge(BERT, 20).await;
        b.hand_over(&a, false).await;
        assert_eq!(a.events(ANNA, 10).await, ["relayed", "delivered"], "{table}");
    }
}
