//! A TCP relay in front of a node, whose weather can change: cut, stalled, half-open,
//! slow, or with bytes that arrive other than they were sent. It reads nothing of
//! what it carries; what goes wrong on it is drawn elsewhere.

use chancery::dice::Dice;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// One way of a slow line.
const DELAY: Duration = Duration::from_millis(200);
/// Bytes read at once.
const PIECE: usize = 16 * 1024;
/// Pieces under way in one direction.
const UNDER_WAY: usize = 64;
/// Of a hundred pieces on a line that garbles, so many have a wrong bit.
const GARBLED: u64 = 20;

/// What a line does with what is given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Carries it.
    Clear,
    /// Ends connections, and takes no new ones.
    Cut,
    /// Keeps it until the weather changes.
    Stalled,
    /// Swallows it, and says nothing, not even when one side has gone: who is still
    /// connected then never hears of it. The connections end with the weather.
    HalfOpen,
    /// Brings it 200 ms later.
    Slow,
    /// Turns a bit of some.
    Garbled,
}

impl Weather {
    /// All that is worse than clear.
    pub(super) const BAD: [Self; 5] = [Self::Cut, Self::Stalled, Self::HalfOpen, Self::Slow, Self::Garbled];

    /// As the figures name it.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Cut => "cut",
            Self::Stalled => "stalled",
            Self::HalfOpen => "half_open",
            Self::Slow => "slow",
            Self::Garbled => "garbled",
        }
    }
}

/// A relay; ends with its handle.
pub(super) struct Link {
    /// Where it listens.
    pub(super) address: SocketAddr,
    weather: watch::Sender<Weather>,
    _ends: DropGuard,
}

impl Link {
    /// Listens on a port of this host and carries what comes to `target`.
    ///
    /// # Errors
    /// The port is taken.
    pub(super) async fn open(port: u16, target: SocketAddr, dice: Dice) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Clear);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(listen(
            listener,
            target,
            seen,
            stop.clone(),
            dice,
        )));
        Ok(Self { address, weather, _ends: stop.drop_guard() })
    }

    /// Changes the weather.
    pub(super) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

type Chance = Arc<Mutex<Dice>>;

async fn listen(
    listener: TcpListener,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    stop: CancellationToken,
    dice: Dice,
) {
    let dice = Arc::new(Mutex::new(dice));
    loop {
        let Ok((caller, _)) = listener.accept().await else { continue };
        let carrying = carry(caller, target, weather.clone(), Arc::clone(&dice));
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            // Connections end in every way; both ends see theirs.
            let _ = carrying.await;
        }));
    }
}

/// Carries one connection to its end.
async fn carry(
    caller: TcpStream,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    dice: Chance,
) -> io::Result<()> {
    let now = *weather.borrow_and_update();
    match now {
        Weather::Cut => return Ok(()),
        Weather::HalfOpen => {
            end(weather).await;
            return Ok(());
        }
        _ => {}
    }
    let called = TcpStream::connect(target).await?;
    for stream in [&caller, &called] {
        stream.set_nodelay(true)?;
    }
    let (from_caller, to_caller) = caller.into_split();
    let (from_called, to_called) = called.into_split();
    tokio::select! {
        ended = async {
            tokio::try_join!(
                one_way(from_caller, to_called, weather.clone(), Arc::clone(&dice)),
                one_way(from_called, to_caller, weather.clone(), dice),
            )
        } => ended.map(drop),
        () = end(weather.clone()) => Ok(()),
    }
}

/// Waits until the weather ends a connection.
async fn end(mut weather: watch::Receiver<Weather>) {
    let mut before = *weather.borrow_and_update();
    while before != Weather::Cut && weather.changed().await.is_ok() {
        let now = *weather.borrow_and_update();
        if before == Weather::HalfOpen {
            return;
        }
        before = now;
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
    dice: Chance,
) -> io::Result<()> {
    let (queue, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let mut arriving = weather.clone();
    let reading = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = from.read(&mut buffer).await;
            let now = *weather.borrow();
            if now == Weather::HalfOpen {
                match read {
                    Ok(1..) => continue,
                    // Nobody hears that this side has gone.
                    _ => return std::future::pending().await,
                }
            }
            let mut piece = buffer.get(..read?).unwrap_or_default().to_vec();
            if piece.is_empty() {
                return Ok(());
            }
            if now == Weather::Garbled {
                garble(&mut piece, &dice);
            }
            let at = Instant::now() + if now == Weather::Slow { DELAY } else { Duration::ZERO };
            if queue.send((at, piece)).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            // Its sender goes when the run ends.
            let _ = arriving.wait_for(|weather| *weather != Weather::Stalled).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(drop)
}

fn garble(piece: &mut [u8], dice: &Chance) {
    let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
    if dice.chance(GARBLED) {
        let at = dice.below(piece.len() as u64) as usize;
        if let Some(byte) = piece.get_mut(at) {
            *byte ^= 1 << dice.below(8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link, and the two ends of a connection over it.
    async fn line() -> (Link, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link::open(0, listener.local_addr().unwrap(), Dice::new(1, 1)).await.unwrap();
        let caller = TcpStream::connect(link.address).await.unwrap();
        let (called, _) = listener.accept().await.unwrap();
        (link, caller, called)
    }

    #[tokio::test]
    async fn carries_both_ways_and_ends_with_either_side() {
        let (_link, mut caller, mut called) = line().await;
        let mut bytes = [0; 5];
        caller.write_all(b"there").await.unwrap();
        called.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"there");
        called.write_all(b"again").await.unwrap();
        called.shutdown().await.unwrap();
        caller.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"again");
        assert_eq!(caller.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn stalled_bytes_come_later_and_cut_ones_never() {
        let (link, mut caller, mut called) = line().await;
        let mut bytes = [0; 4];
        link.set(Weather::Stalled);
        caller.write_all(b"late").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), called.read(&mut bytes)).await;
        assert!(early.is_err());
        link.set(Weather::Clear);
        called.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"late");
        link.set(Weather::Cut);
        assert!(matches!(called.read(&mut bytes).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn half_open_hides_that_a_side_has_gone() {
        let (link, mut caller, mut called) = line().await;
        let mut bytes = [0; 4];
        link.set(Weather::HalfOpen);
        caller.write_all(b"gone").await.unwrap();
        drop(caller);
        let heard = tokio::time::timeout(Duration::from_millis(50), called.read(&mut bytes)).await;
        assert!(heard.is_err());
        link.set(Weather::Clear);
        assert!(matches!(called.read(&mut bytes).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn slow_and_garbled_lines_bring_as_much_as_was_sent() {
        let (link, mut caller, mut called) = line().await;
        link.set(Weather::Slow);
        let begun = Instant::now();
        caller.write_all(&[7; 1000]).await.unwrap();
        let mut bytes = vec![0; 1000];
        called.read_exact(&mut bytes).await.unwrap();
        assert!(begun.elapsed() >= DELAY && bytes == [7; 1000]);
        link.set(Weather::Garbled);
        let mut wrong = false;
        for _ in 0..200 {
            caller.write_all(&[7; 1000]).await.unwrap();
            called.read_exact(&mut bytes).await.unwrap();
            wrong |= bytes != [7; 1000];
        }
        assert!(wrong);
    }
}
