//! Calls of one kind that wait together become one piece of work: many devices
//! acknowledge at the same time, and a statement for all of them costs little
//! more than one for each. Devices take turns, so that one with much to do waits
//! for itself; what would wait too long is refused at once.

use crate::store::{NodeStore, Tx};
use chancery_kit::overload::{Comebacks, Shares};
use chancery_types::{DeviceId, Reason, Refusal};
use futures::future::BoxFuture;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Calls in one piece of work.
const TOGETHER: usize = 32;
/// Weight at which a piece of work takes no further call.
const PIECE: u64 = 1024;
/// Longest that a call should wait for its turn.
const WAIT: Duration = Duration::from_secs(1);
/// Weight that may wait, however slow or fast the store is: at least, so that a burst
/// passes, and at most, for the memory it takes.
const WAITING: (u64, u64) = (4096, 16_384);
/// How long a unit of weight takes before any was measured.
const PACE: Duration = Duration::from_micros(200);

/// What a lane does for some calls: one answer for each, in order. May run twice.
pub(crate) type Work<I, O> =
    for<'t, 'c> fn(&'t mut Tx<'c>, Arc<[I]>) -> BoxFuture<'t, Result<Vec<O>, sqlx::Error>>;

/// One kind of call.
pub(crate) struct Lane<I, O> {
    store: NodeStore,
    waiting: Arc<Waiting<I, O>>,
    _end: DropGuard,
}

struct Waiting<I, O> {
    queue: Mutex<Queue<I, O>>,
    arrived: Notify,
}

struct Queue<I, O> {
    /// Devices whose calls wait, each once.
    turns: VecDeque<DeviceId>,
    calls: HashMap<DeviceId, VecDeque<Call<I, O>>>,
    shares: Shares<DeviceId>,
    comebacks: Comebacks,
    /// How long a unit of weight takes.
    pace: Duration,
}

struct Call<I, O> {
    input: I,
    weight: u64,
    answer: oneshot::Sender<Result<O, Refusal>>,
}

impl<I, O> Lane<I, O>
where
    I: Send + Sync + 'static,
    O: Send + 'static,
{
    /// Starts the lane; it ends with its handle.
    pub(crate) fn start(store: NodeStore, name: &'static str, work: Work<I, O>) -> Self {
        let waiting = Arc::new(Waiting { queue: Mutex::new(Queue::default()), arrived: Notify::new() });
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(run(
            store.clone(),
            name,
            work,
            Arc::clone(&waiting),
        )));
        Self { store, waiting, _end: end.drop_guard() }
    }

    /// Answers after commit and flush. `weight` compares the call with others of its kind.
    ///
    /// # Errors
    /// OVERLOADED, with the time at which to come again: it would wait too long, or
    /// the device's other calls have its share of those that wait.
    pub(crate) async fn call(&self, device: DeviceId, weight: u64, input: I) -> Result<O, Refusal> {
        let (answer, answered) = oneshot::channel();
        let queued = self.waiting.queue().push(device, Call { input, weight, answer });
        queued.map_err(|pace| {
            let wait = self.waiting.queue().comebacks.next(pace, self.store.entropy());
            Refusal::new(Reason::Overloaded, "too much waits to be written").retry_after(wait)
        })?;
        self.waiting.arrived.notify_one();
        let stopping = || Refusal::new(Reason::ShuttingDown, "the server is stopping; try again");
        answered.await.map_err(|_| stopping())?
    }
}

impl<I, O> Waiting<I, O> {
    fn queue(&self) -> MutexGuard<'_, Queue<I, O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I, O> Default for Queue<I, O> {
    fn default() -> Self {
        Self {
            turns: VecDeque::new(),
            calls: HashMap::new(),
            shares: Shares::default(),
            comebacks: Comebacks::default(),
            pace: PACE,
        }
    }
}

impl<I, O> Queue<I, O> {
    /// Weight that is done in [`WAIT`].
    fn capacity(&self) -> u64 {
        let units = WAIT.as_nanos() / self.pace.as_nanos().max(1);
        u64::try_from(units).unwrap_or(u64::MAX).clamp(WAITING.0, WAITING.1)
    }

    /// How long the call would take, if it may not wait.
    fn push(&mut self, device: DeviceId, call: Call<I, O>) -> Result<(), Duration> {
        if !self.shares.take(&device, call.weight, self.capacity()) {
            return Err(self.pace.saturating_mul(u32::try_from(call.weight).unwrap_or(u32::MAX)));
        }
        let calls = self.calls.entry(device).or_default();
        if calls.is_empty() {
            self.turns.push_back(device);
        }
        calls.push_back(call);
        Ok(())
    }

    /// The next piece of work: one call of each device in turn. Calls whose callers have
    /// hung up are left out: they ask again.
    fn next(&mut self) -> Piece<I, O> {
        let mut piece = Piece { inputs: Vec::new(), answers: Vec::new(), weight: 0 };
        while piece.inputs.len() < TOGETHER && piece.weight < PIECE {
            let Some(device) = self.turns.pop_front() else { break };
            let Some(calls) = self.calls.get_mut(&device) else { continue };
            let call = calls.pop_front();
            if calls.is_empty() {
                self.calls.remove(&device);
            } else {
                self.turns.push_back(device);
            }
            let Some(call) = call else { continue };
            self.shares.give(&device, call.weight);
            if !call.answer.is_closed() {
                piece.weight += call.weight;
                piece.inputs.push(call.input);
                piece.answers.push(call.answer);
            }
        }
        piece
    }

    /// Only full pieces tell: in small ones the flush is most of it.
    fn done(&mut self, weight: u64, took: Duration) {
        if weight >= PIECE {
            let pace = took.div_f64(weight as f64);
            self.pace = (self.pace * 3 + pace) / 4;
        }
    }
}

struct Piece<I, O> {
    inputs: Vec<I>,
    answers: Vec<oneshot::Sender<Result<O, Refusal>>>,
    weight: u64,
}

async fn run<I, O>(store: NodeStore, name: &'static str, work: Work<I, O>, waiting: Arc<Waiting<I, O>>)
where
    I: Send + Sync + 'static,
    O: Send + 'static,
{
    loop {
        let Piece { inputs, answers, weight } = waiting.queue().next();
        if inputs.is_empty() {
            waiting.arrived.notified().await;
            continue;
        }
        let (inputs, begun): (Arc<[I]>, _) = (inputs.into(), Instant::now());
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
        waiting.queue().done(weight, begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: DeviceId = DeviceId::from_bytes([1; 16]);
    const QUIET: DeviceId = DeviceId::from_bytes([2; 16]);

    fn call(name: u32, weight: u64) -> (Call<u32, ()>, oneshot::Receiver<Result<(), Refusal>>) {
        let (answer, answered) = oneshot::channel();
        (Call { input: name, weight, answer }, answered)
    }

    /// Pushes calls of a device while they may wait; how many, and their callers.
    fn flood(queue: &mut Queue<u32, ()>, weight: u64) -> Vec<oneshot::Receiver<Result<(), Refusal>>> {
        let mut callers = Vec::new();
        loop {
            let (call, caller) = call(0, weight);
            if queue.push(NOISY, call).is_err() {
                return callers;
            }
            callers.push(caller);
        }
    }

    #[test]
    fn devices_take_turns() {
        let mut queue = Queue::default();
        let callers = flood(&mut queue, 128);
        assert_eq!(callers.len(), 9, "a quarter of what is done in a second, at 200 µs each");
        let (quiet, _caller) = call(7, 1);
        queue.push(QUIET, quiet).unwrap();
        let piece = queue.next();
        assert_eq!(piece.inputs[..3], [0, 7, 0], "the quiet one's turn is the second");
        assert!(piece.weight >= PIECE && piece.weight < PIECE + 128);
        while !queue.next().inputs.is_empty() {}
        assert_eq!((queue.shares.total(), queue.turns.len(), queue.calls.len()), (0, 0, 0));
    }

    #[test]
    fn who_has_hung_up_is_left_out() {
        let mut queue = Queue::default();
        drop(flood(&mut queue, 1));
        assert!(queue.next().inputs.is_empty());
        assert_eq!(queue.shares.total(), 0);
    }

    #[test]
    fn what_may_wait_follows_the_store() {
        let mut queue = Queue::<u32, ()>::default();
        assert_eq!(queue.capacity(), 5000);
        queue.done(10, Duration::from_secs(1));
        assert_eq!(queue.capacity(), 5000, "a small piece tells nothing");
        for _ in 0..50 {
            queue.done(PIECE, Duration::from_secs(10));
        }
        assert_eq!(queue.capacity(), WAITING.0);
        for _ in 0..50 {
            queue.done(PIECE, Duration::from_micros(1));
        }
        assert_eq!(queue.capacity(), WAITING.1);
    }
}
