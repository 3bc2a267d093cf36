//! Calls of one kind that wait together become one piece of work: many devices
//! acknowledge at the same time, and a statement for all of them costs little
//! more than one for each.

use crate::store::{NodeStore, Tx};
use chancery_types::{Reason, Refusal};
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Calls that may wait; further ones wait for room.
const WAITING: usize = 1024;
/// Calls in one piece of work.
const TOGETHER: usize = 32;

/// What a lane does for some calls: one answer for each, in order. May run twice.
pub(crate) type Work<I, O> =
    for<'t, 'c> fn(&'t mut Tx<'c>, Arc<[I]>) -> BoxFuture<'t, Result<Vec<O>, sqlx::Error>>;

/// One kind of call.
pub(crate) struct Lane<I, O>(mpsc::Sender<Call<I, O>>);

struct Call<I, O> {
    input: I,
    answer: oneshot::Sender<Result<O, Refusal>>,
}

impl<I, O> Lane<I, O>
where
    I: Send + Sync + 'static,
    O: Send + 'static,
{
    /// Starts the lane; it ends with its last handle.
    pub(crate) fn start(store: NodeStore, name: &'static str, work: Work<I, O>) -> Self {
        let (calls, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(store, name, work, waiting));
        Self(calls)
    }

    /// Answers after commit and flush.
    pub(crate) async fn call(&self, input: I) -> Result<O, Refusal> {
        let (answer, answered) = oneshot::channel();
        let stopping = || Refusal::new(Reason::ShuttingDown, "the server is stopping; try again");
        self.0.send(Call { input, answer }).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}

async fn run<I, O>(
    store: NodeStore,
    name: &'static str,
    work: Work<I, O>,
    mut waiting: mpsc::Receiver<Call<I, O>>,
) where
    I: Send + Sync + 'static,
    O: Send + 'static,
{
    let mut calls = Vec::with_capacity(TOGETHER);
    while waiting.recv_many(&mut calls, TOGETHER).await > 0 {
        let (inputs, answers): (Vec<I>, Vec<_>) =
            calls.drain(..).map(|call| (call.input, call.answer)).unzip();
        let inputs: Arc<[I]> = inputs.into();
        match store.change(name, move |tx| work(tx, Arc::clone(&inputs))).await {
            Ok(outputs) => {
                for (answer, output) in answers.into_iter().zip(outputs) {
                    // Who hung up asks again.
                    let _ = answer.send(Ok(output));
                }
            }
            Err(refusal) => {
                for answer in answers {
                    let _ = answer.send(Err(refusal.clone()));
                }
            }
        }
    }
}
