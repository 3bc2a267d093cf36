//! `chancery chaos`: a federation of processes that are killed, stopped and cut off from
//! each other while letters flow, and books that must balance in the end.

mod account;
mod books;
mod broadcasts;
mod device;
mod faults;
mod found;
mod link;
mod load;
mod party;
mod report;
mod stores;

use crate::Failure;
use crate::local::{bar, print};
use books::Books;
use broadcasts::{Bulletins, Speaker};
use chancery::dice::Dice;
use chancery_types::{Clock, Entropy};
use clap::{Args, Subcommand};
use faults::{Done, Faults};
use found::{Founded, found};
use indicatif::ProgressBar;
use load::{Conversation, Ledger, Recipient, agent_name};
use report::Report;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stores::Reader;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Mean of the pauses in one conversation.
const PAUSE: Duration = Duration::from_secs(10);
/// How long requests may remain without an answer once everything is healed.
const ANSWERS: Duration = Duration::from_mins(5);
/// How long the rest may take to arrive, as long as something moves …
const SETTLE: Duration = Duration::from_mins(15);
/// … and how long nothing may move: the longest pauses of endpoints and links, twice.
const STANDSTILL: Duration = Duration::from_mins(2);
/// Pause between looks at the books.
const LOOK: Duration = Duration::from_secs(2);
/// Rows of the dice that conversations have: what is written does not hang on how often it
/// is asked for.
const LETTERS: u64 = 4 << 40;
const REPETITIONS: u64 = 5 << 40;
/// The same for broadcasts.
const BULLETINS: u64 = 6 << 40;
const BULLETINS_AGAIN: u64 = 7 << 40;

/// Kill, stop and cut off the parties of a federation, and do the books.
///
/// Founds a federation of its own in a folder, each party a process: certificate
/// authority, directory, three evaluators, enrolment authority, two nodes, two
/// agents, and the residents' devices. While agents write to residents and to
/// each other, broadcast to all residents, and residents answer, processes are killed (SIGKILL) and stopped
/// (SIGSTOP), and links are cut, stalled, half-open, slow, or turn bits. Then
/// everything is healed, and the books must balance: each letter that was
/// accepted stands once at its recipient, in order, as it was sent, with its
/// attachments and one terminal event; whatever was refused stands nowhere; each
/// broadcast stands once at every resident.
///
/// Exits with 0 only if they do. Otherwise the folder stays, with the log of
/// each party in logs/ and of what was done to them in faults.log.
///
/// Example: chancery chaos --minutes 30 --json
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ChaosArgs {
    /// How long things go wrong; fractions count.
    #[arg(long, default_value_t = 1.0, value_name = "MINUTES", value_parser = positive)]
    minutes: f64,
    /// Draws the same faults and letters again. Default: a new one, which is printed.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
    /// Folder, empty or missing, which stays. Default: one in the system's temporary folder,
    /// which goes when the books balance.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Residents, each with a device.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    residents: u16,
    /// Processes that are killed in a minute, on average.
    #[arg(long, default_value_t = 20.0, value_name = "KILLS", value_parser = positive)]
    kills_per_minute: f64,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Device(device::DeviceArgs),
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number > 0.0 && number <= 10_000.0 {
        Ok(number)
    } else {
        Err("not above 0, or above 10000".to_owned())
    }
}

/// Runs `chancery chaos`.
///
/// # Errors
/// The books do not balance, or what [`Failure`] lists.
pub(crate) async fn run(
    args: ChaosArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    if let Some(Role::Device(device)) = args.role {
        return device::run(device, clock, entropy, shutdown).await;
    }
    // Of 32 bits, so that it is short to write down.
    let seed = args.seed.unwrap_or_else(|| u64::from(u32::from_le_bytes(entropy.array())));
    let folder = Folder::new(args.dir.clone(), &*entropy)?;
    if !args.json {
        print(&format!("Seed {seed}, in {}\n", folder.path.display()))?;
    }
    let report = tokio::select! {
        report = Box::pin(chaos(&args, seed, &folder.path, (clock, entropy))) => report,
        () = shutdown.cancelled() => return Ok(()),
    };
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            folder.keep();
            return Err(error);
        }
    };
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        print(&report.table())?;
    }
    if report.is_good() {
        return Ok(());
    }
    Err(Failure::Chaos(folder.keep()))
}

async fn chaos(
    args: &ChaosArgs,
    seed: u64,
    folder: &Path,
    parts: (Arc<dyn Clock>, Arc<dyn Entropy>),
) -> Result<Report, Failure> {
    let founded = found(folder, usize::from(args.residents), seed, args.json, parts).await?;
    let (ledger, bulletins) = (Ledger::default(), Bulletins::default());
    let (stop, end, tended) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    founded.parties.start().await?;
    let tending = async {
        founded.parties.tend(&tended).await?;
        founded.parties.terminate().await
    };
    let working = async {
        let mut talking = converse(&founded, &ledger, seed, (&stop, &end))?;
        for from in 0..founded.agents.len() {
            let agent = format!("http://{}", founded.layout.address(&agent_name(from)));
            let dice = |rows| Dice::new(seed, rows + from as u64);
            let speaker = Speaker::new(from, &agent, bulletins.clone())?;
            talking.spawn(speaker.speak((dice(BULLETINS), dice(BULLETINS_AGAIN)), stop.clone(), end.clone()));
        }
        let faults = Faults::new(&founded, seed, args.kills_per_minute)?;
        let (begun, duration) = (Instant::now(), Duration::from_secs_f64(args.minutes * 60.0));
        let going_wrong = async {
            tokio::try_join!(faults.run(&stop), async {
                watch(duration, &ledger, &faults, args.json).await;
                stop.cancel();
                Ok(())
            })
        };
        going_wrong.await?;
        let (seconds, healed) = (begun.elapsed().as_secs_f64(), Instant::now());
        let answered = async { while talking.join_next().await.is_some() {} };
        if tokio::time::timeout(ANSWERS, answered).await.is_err() {
            end.cancel();
        }
        let books = settle(&founded, (&ledger, &bulletins), args.json).await?;
        tended.cancel();
        let settled_seconds = healed.elapsed().as_secs_f64();
        Ok(Report { seconds, settled_seconds, ..Report::new(seed, books, faults.done()) })
    };
    let (report, ended_badly) = tokio::try_join!(working, tending)?;
    let (letters, refused) = (ledger.accepted(), ledger.refused());
    let broadcasts = bulletins.handed_over();
    Ok(Report {
        letters,
        broadcasts,
        refused,
        ended_by_themselves: founded.parties.ended(),
        ended_badly,
        ..report
    })
}

/// Both agents write to every resident and to each other.
fn converse(
    founded: &Founded,
    ledger: &Ledger,
    seed: u64,
    (stop, end): (&CancellationToken, &CancellationToken),
) -> Result<JoinSet<()>, Failure> {
    let mut talking = JoinSet::new();
    let residents = (0..).zip(&founded.residents).map(|(n, who)| (Recipient::Resident(n), who));
    let agents = (0..).zip(&founded.agents).map(|(n, who)| (Recipient::Agent(n), who));
    let recipients: Vec<_> = residents.chain(agents).collect();
    for from in 0..founded.agents.len() {
        let agent = format!("http://{}", founded.layout.address(&agent_name(from)));
        for (row, (to, who)) in (0_u64..).zip(&recipients) {
            if *to == Recipient::Agent(from) {
                continue;
            }
            let dice = |rows| Dice::new(seed, rows + ((from as u64) << 16) + row);
            let (sender, recipient) = ((from, &*agent), (*to, (*who).clone()));
            let talk = Conversation::new(sender, recipient, ledger.clone(), PAUSE)?;
            talking.spawn(talk.hold((dice(LETTERS), dice(REPETITIONS)), stop.clone(), end.clone()));
        }
    }
    Ok(talking)
}

/// Shows how a run goes until its time is over.
async fn watch(duration: Duration, ledger: &Ledger, faults: &Faults<'_>, quiet: bool) {
    let bar = bar(duration.as_secs() as usize, "", quiet);
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let Done { faults, .. } = faults.done();
        bar.set_position(begun.elapsed().as_secs());
        let (letters, all): (u64, u64) = (ledger.accepted(), faults.values().sum());
        let kills = faults.get("kill").copied().unwrap_or(0);
        bar.set_message(format!("s, {letters} letters accepted, {kills} kills, {all} faults in all"));
        tokio::time::sleep(Duration::from_secs(1).min(duration.saturating_sub(begun.elapsed()))).await;
    }
    bar.finish_and_clear();
}

/// Does the books until they balance, or nothing moves any more.
async fn settle(
    founded: &Founded,
    (ledger, bulletins): (&Ledger, &Bulletins),
    quiet: bool,
) -> Result<Books, Failure> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let mut reader = Reader::new(founded)?;
    let begun = Instant::now();
    let (mut last, mut moved) = (Books::default(), begun);
    loop {
        let stores = reader.read(founded).await;
        let books = Books::of(&ledger.letters(), &bulletins.all(), &stores);
        if stores.complete && books.balance() {
            bar.finish_and_clear();
            return Ok(books);
        }
        if books != last {
            moved = Instant::now();
        }
        bar.set_message(format!("waiting for the rest: {}", books.summary()));
        bar.tick();
        last = books;
        if moved.elapsed() > STANDSTILL || begun.elapsed() > SETTLE {
            bar.finish_and_clear();
            return Ok(last);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a run happens.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn new(named: Option<PathBuf>, entropy: &dyn Entropy) -> Result<Self, Failure> {
        let temporary = named.is_none();
        let name = || format!("chancery-chaos-{}", hex::encode(entropy.array::<4>()));
        let path = named.unwrap_or_else(|| std::env::temp_dir().join(name()));
        if path.exists() && path.read_dir()?.next().is_some() {
            return Err(Failure::Letter("--dir must be empty or missing".to_owned()));
        }
        std::fs::create_dir_all(&path)?;
        Ok(Self { path, temporary })
    }

    /// Leaves everything there; says where.
    fn keep(mut self) -> PathBuf {
        self.temporary = false;
        self.path.clone()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
