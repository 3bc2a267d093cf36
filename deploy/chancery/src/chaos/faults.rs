//! What goes wrong and when: drawn from the seed, done to processes and links, written
//! down in `faults.log`.

use super::found::Founded;
use super::link::Weather;
use crate::Failure;
use chancery::dice::Dice;
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Rows of the dice: whatever is drawn for one thing does not hang on another.
const KILLS: u64 = 1 << 40;
const HALTS: u64 = 2 << 40;
const LINES: u64 = 3 << 40;
/// Mean of the pauses between stops of a process, and between bad weathers of a link.
const HALT_EVERY: Duration = Duration::from_secs(15);
const WEATHER_EVERY: Duration = Duration::from_secs(20);
/// How long a process stands still; of a hundred stops, so many outlast the patience of
/// those who wait for it.
const HALT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
const LONG_HALT: (Duration, Duration) = (Duration::from_secs(31), Duration::from_secs(40));
const LONG_HALTS: u64 = 8;
/// Of a hundred killed, so many are started again at once, and so many after long.
const AT_ONCE: u64 = 50;
const AFTER_LONG: u64 = 5;

/// How often something was done, by fault, and what kills it meant by kind of party.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// By fault.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Kills, by kind of party.
    pub(super) killed: BTreeMap<&'static str, u64>,
}

/// What does it.
pub(super) struct Faults<'a> {
    founded: &'a Founded,
    seed: u64,
    /// Mean of the pauses between kills.
    every: Duration,
    begun: Instant,
    log: Mutex<File>,
    done: Mutex<Done>,
}

impl<'a> Faults<'a> {
    /// # Errors
    /// The log cannot be written.
    pub(super) fn new(founded: &'a Founded, seed: u64, kills_per_minute: f64) -> Result<Self, Failure> {
        let log = Mutex::new(File::create(founded.layout.path("faults.log"))?);
        let every = Duration::from_secs_f64(60.0 / kills_per_minute);
        Ok(Self { founded, seed, every, begun: Instant::now(), log, done: Mutex::default() })
    }

    /// What was done so far.
    pub(super) fn done(&self) -> Done {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does it until `stop`; then everything is healed.
    ///
    /// # Errors
    /// The system says no.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<(), Failure> {
        let lines = (0..self.founded.links.len()).map(|link| self.weather(link, stop));
        tokio::try_join!(self.kills(stop), self.halts(stop), futures::future::try_join_all(lines)).map(drop)
    }

    async fn kills(&self, stop: &CancellationToken) -> Result<(), Failure> {
        let mut dice = Dice::new(self.seed, KILLS);
        let parties = &self.founded.parties.0;
        let total: u64 = parties.iter().map(|party| party.weight).sum();
        let mut down = FuturesUnordered::new();
        while pause(dice.pause(self.every), stop, &mut down).await? {
            let mut left = dice.below(total);
            let pause = match dice.below(100) {
                ..AT_ONCE => Duration::ZERO,
                drawn if drawn < 100 - AFTER_LONG => dice.between(Duration::ZERO, Duration::from_secs(4)),
                _ => dice.between(Duration::from_secs(4), Duration::from_secs(25)),
            };
            let chosen = parties.iter().find(|party| {
                let chosen = left < party.weight;
                left = left.saturating_sub(party.weight);
                chosen
            });
            let Some(party) = chosen else { continue };
            self.note(&format!("kill {}, back after {pause:?}", party.name), |done| {
                *done.faults.entry("kill").or_default() += 1;
                *done.killed.entry(party.kind).or_default() += 1;
            })?;
            down.push(party.kill(pause, stop));
        }
        while let Some(back) = down.next().await {
            back?;
        }
        Ok(())
    }

    async fn halts(&self, stop: &CancellationToken) -> Result<(), Failure> {
        let mut dice = Dice::new(self.seed, HALTS);
        let parties = &self.founded.parties.0;
        let mut halted = FuturesUnordered::new();
        while pause(dice.pause(HALT_EVERY), stop, &mut halted).await? {
            let party = &parties[dice.below(parties.len() as u64) as usize];
            let (shortest, longest) = if dice.chance(LONG_HALTS) { LONG_HALT } else { HALT };
            let pause = dice.between(shortest, longest);
            self.note(&format!("stop {} for {pause:?}", party.name), |done| {
                *done.faults.entry("stop").or_default() += 1;
            })?;
            halted.push(party.halt(pause, stop));
        }
        while let Some(back) = halted.next().await {
            back?;
        }
        Ok(())
    }

    async fn weather(&self, link: usize, stop: &CancellationToken) -> Result<(), Failure> {
        let mut dice = Dice::new(self.seed, LINES + link as u64);
        let Some((name, link)) = self.founded.links.get(link) else { return Ok(()) };
        while stop.run_until_cancelled(tokio::time::sleep(dice.pause(WEATHER_EVERY))).await.is_some() {
            let weather = *dice.pick(&Weather::BAD.each_ref());
            let (shortest, longest) = match weather {
                Weather::Cut | Weather::Garbled => (1, 12),
                Weather::Stalled | Weather::Slow | Weather::Clear => (2, 25),
                // Long enough for keep-alive to notice, or not.
                Weather::HalfOpen => (5, 45),
            };
            let lasts = dice.between(Duration::from_secs(shortest), Duration::from_secs(longest));
            self.note(&format!("{} {name} for {lasts:?}", weather.title()), |done| {
                *done.faults.entry(weather.title()).or_default() += 1;
            })?;
            link.set(weather);
            stop.run_until_cancelled(tokio::time::sleep(lasts)).await;
            link.set(Weather::Clear);
        }
        Ok(())
    }

    fn note(&self, what: &str, count: impl FnOnce(&mut Done)) -> Result<(), Failure> {
        count(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(writeln!(log, "{:9.3} {what}", self.begun.elapsed().as_secs_f64())?)
    }
}

/// Waits that long while what is under way goes on; whether it was not told to stop.
async fn pause<F>(
    pause: Duration,
    stop: &CancellationToken,
    under_way: &mut FuturesUnordered<F>,
) -> Result<bool, Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let end = tokio::time::sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(true),
            () = stop.cancelled() => return Ok(false),
            Some(ended) = under_way.next() => ended?,
        }
    }
}
