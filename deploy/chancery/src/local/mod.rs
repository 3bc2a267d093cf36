//! `chancery up`: a whole federation on this machine, and a mailing through it.

pub(crate) mod authority;
mod broadcast;
pub(crate) mod federation;
pub(crate) mod layout;
pub(crate) mod mailing_run;
pub(crate) mod report;
pub(crate) mod residents;
pub(crate) mod visibility;

use crate::Failure;
use authority::Registry;
use chancery::mailing::recipients::{self, Recipient};
use chancery::mailing::template::Template;
use chancery::mailing::{assets, synthetic};
use chancery_directory_core::AgentKey;
use chancery_proto::agent::v1 as agent;
use chancery_sdk::endpoint::{Endpoint, EndpointConfig};
use chancery_types::{Clock, Entropy, SystemClock, SystemEntropy};
use clap::Args;
use federation::{LocalFederation, name};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use layout::{ADMINISTRATIONS, EVALUATORS, Layout};
use report::Report;
use residents::{ANSWER, ANSWERS, Expected, Resident, Tally};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio_util::sync::CancellationToken;
use visibility::{Searcher, Secret};

/// The list and letter that are sent unless others are named.
const RECIPIENTS: &[u8] = include_bytes!("../../../local/recipients.csv");
const LETTER: &str = include_str!("../../../local/letter.md");
/// Residents that enrol at the same time.
const ENROLLING: usize = 16;

/// Run a federation on this machine, send a letter to each of its residents, and broadcast to all.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpArgs {
    /// Folder of everything; started again with the same folder, it resumes.
    #[arg(long, default_value = "chancery-data", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// First of the nine ports to listen on; 0 takes any that are free. Counts
    /// when the folder is new.
    #[arg(long, default_value_t = 7400, value_name = "PORT")]
    pub(crate) port: u16,
    /// Recipients as CSV: request_id, scheme, identifier, language, and merge
    /// fields. Default: 200 invented residents.
    #[arg(long, value_name = "FILE")]
    pub(crate) recipients: Option<PathBuf>,
    /// Letter in CommonMark with {{ fields }}. Default: a sample assessment.
    #[arg(long, value_name = "FILE")]
    pub(crate) letter: Option<PathBuf>,
    /// Take that many recipients; more than the list has are invented.
    #[arg(long, value_name = "N")]
    pub(crate) residents: Option<u64>,
    /// Exit after the table: 0 only if every letter arrived intact and once.
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A federation that runs, with its residents' devices.
pub(crate) struct Running {
    /// The parties.
    pub(crate) federation: LocalFederation,
    tally: Arc<Tally>,
    secrets: Vec<(Secret, Vec<u8>)>,
    residents: Vec<Endpoint>,
    /// Answers that are to come.
    pub(crate) answers_due: usize,
}

/// A mailing, read and rendered.
pub(crate) struct Mailing {
    recipients: Vec<Recipient>,
    /// One for each recipient.
    pub(crate) letters: Vec<agent::SendRequest>,
    attachments: Arc<Vec<Vec<u8>>>,
    refused: Vec<String>,
}

/// Runs `chancery up`.
///
/// # Errors
/// What [`Failure`] lists.
pub(crate) async fn run(args: UpArgs, shutdown: CancellationToken) -> Result<(), Failure> {
    let mailing = Mailing::read(&args)?;
    let layout = Layout::open(&args.dir, args.port)?;
    let mut running = Running::start(layout, &mailing, &shutdown, args.json).await?;
    if !args.json {
        print(&running.listens())?;
    }
    let all = async {
        let mut report = running.send(&mailing, args.json).await?;
        report.figures.broadcasts = running.broadcast(args.json).await?;
        Ok::<_, Failure>(report)
    };
    let mut report = tokio::select! {
        report = all => report?,
        () = shutdown.cancelled() => return Ok(()),
    };
    report.seen = running.search()?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report.figures)?))?;
    } else {
        print(&report.table())?;
    }
    if !args.once {
        if !args.json {
            print("\nThe federation stays up. Press Ctrl-C to stop it.\n")?;
        }
        tokio::select! {
            ended = running.federation.ended() => ended?,
            () = shutdown.cancelled() => {}
        }
    }
    shutdown.cancel();
    running.federation.ended().await?;
    if args.once && !report.is_good() { Err(Failure::NotAllArrived) } else { Ok(()) }
}

impl Mailing {
    /// Reads list and letter, and makes the attachments.
    ///
    /// # Errors
    /// A file cannot be read, or the letter names a field that is missing.
    pub(crate) fn read(args: &UpArgs) -> Result<Self, Failure> {
        let text = match &args.letter {
            Some(path) => std::fs::read_to_string(path)?,
            None => LETTER.to_owned(),
        };
        let template = Template::parse(&text)?;
        let list = match (&args.recipients, args.residents) {
            (Some(path), _) => std::fs::read(path)?,
            (None, Some(count)) if count > 200 => {
                let mut list = Vec::new();
                synthetic::write_csv(&mut list, count, 1)?;
                list
            }
            (None, _) => RECIPIENTS.to_vec(),
        };
        let most = args.residents.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let (mut recipients, mut refused) = (Vec::new(), Vec::new());
        for row in recipients::read(list.as_slice())?.take(most) {
            match row {
                Ok(recipient) => recipients.push(recipient),
                Err(error) => refused.push(error.to_string()),
            }
        }
        let notice = assets::notice_pdf(&["Notice of assessment", "", "This notice is a sample."]);
        let code = assets::qr_png("https://example.org/pay")?;
        let attachments = Arc::new(vec![notice, code]);
        let letters = recipients
            .iter()
            .map(|recipient| letter(recipient, &template, &attachments))
            .collect::<Result<_, Failure>>()?;
        Ok(Self { recipients, letters, attachments, refused })
    }
}

impl Mailing {
    /// The same letters with nothing attached.
    pub(crate) fn without_attachments(mut self) -> Self {
        self.letters.iter_mut().filter_map(|l| l.letter.as_mut()).for_each(|l| l.attachments.clear());
        self.attachments = Arc::default();
        self
    }
}

fn letter(
    recipient: &Recipient,
    template: &Template,
    attachments: &[Vec<u8>],
) -> Result<agent::SendRequest, Failure> {
    let names = [("notice.pdf", "application/pdf"), ("pay.png", "image/png")];
    let attachments =
        attachments.iter().zip(names).map(|(bytes, (file_name, media_type))| agent::Attachment {
            file_name: file_name.to_owned(),
            media_type: media_type.to_owned(),
            source: Some(agent::attachment::Source::Data(bytes.clone().into())),
        });
    let identifier = agent::Identifier {
        scheme: recipient.identifier.scheme().as_str().to_owned(),
        value: recipient.identifier.value().to_owned(),
    };
    Ok(agent::SendRequest {
        request_id: recipient.request_id.clone(),
        to: Some(agent::send_request::To::Recipient(identifier)),
        letter: Some(agent::Letter {
            markdown: template.render(&recipient.fields)?,
            language: recipient.language.clone(),
            attachments: attachments.collect(),
            in_reply_to: String::new(),
        }),
        expires_at_ms: 0,
    })
}

impl Running {
    /// Starts all parties, enrols the residents and starts their devices.
    ///
    /// # Errors
    /// What [`Failure`] lists.
    pub(crate) async fn start(
        layout: Layout,
        mailing: &Mailing,
        shutdown: &CancellationToken,
        quiet: bool,
    ) -> Result<Self, Failure> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let mut federation =
            LocalFederation::start(layout, Arc::clone(&clock), Arc::clone(&entropy), shutdown.clone())
                .await?;
        for administration in ADMINISTRATIONS {
            start_administration(&mut federation, administration, &clock, &entropy, shutdown).await?;
        }
        let tally = Arc::new(Tally::default());
        let registry =
            Registry::start(&mut federation, Arc::clone(&clock), Arc::clone(&entropy), shutdown.clone())
                .await?;
        let parties = (&mut federation, &registry);
        let residents = enrol(parties, mailing, &tally, &clock, &entropy, quiet).await?;
        let secrets = secrets(mailing, &residents);
        let answers_due = residents.len().div_ceil(ANSWERS);
        let endpoints = residents.iter().map(Resident::endpoint).collect();
        for resident in residents {
            federation.spawn(resident.live(shutdown.clone()));
        }
        Ok(Self { federation, tally, secrets, residents: endpoints, answers_due })
    }

    /// Where everything listens.
    pub(crate) fn listens(&self) -> String {
        use std::fmt::Write as _;
        let layout = &self.federation.layout;
        let mut text = format!("Federation {} in {}\n", federation::FEDERATION, layout.root().display());
        for (party, what) in [
            ("pki", "issuing CA, mutual TLS"),
            ("directory", "directory, mutual TLS"),
            ("node-federal", "federal node, mutual TLS"),
            ("agent-federal", "federal agent, plain gRPC with reflection"),
            ("node-regional", "regional node, mutual TLS"),
            ("agent-regional", "regional agent, plain gRPC with reflection"),
            (EVALUATORS[0], "evaluator, mutual TLS"),
            (EVALUATORS[1], "evaluator, mutual TLS"),
            (EVALUATORS[2], "evaluator, mutual TLS"),
            ("authority", "enrolment authority, TLS"),
        ] {
            let _ = writeln!(text, "  {:<16} {what}", layout.address(party).to_string());
        }
        let _ = writeln!(text);
        text
    }

    /// Sends a mailing by the federal agent and waits for what comes of it.
    ///
    /// # Errors
    /// What [`Failure`] lists.
    pub(crate) async fn send(&mut self, mailing: &Mailing, quiet: bool) -> Result<Report, Failure> {
        let endpoint = format!("http://{}", self.federation.layout.address("agent-federal"));
        let bar = bar(mailing.letters.len(), "letters delivered", quiet);
        let run = mailing_run::run(&endpoint, mailing.letters.clone(), self.answers_due, &bar, || {
            SystemClock.now().millis()
        });
        let mut report = tokio::select! {
            report = run => report?,
            ended = self.federation.ended() => { ended?; return Err(Failure::Stopped) }
        };
        bar.finish_and_clear();
        report.figures.duplicates = self.tally.duplicates.load(Ordering::Relaxed);
        report.altered = self.tally.altered.load(Ordering::Relaxed);
        report.figures.failed += mailing.refused.len() as u64;
        report.refused_rows.clone_from(&mailing.refused);
        Ok(report)
    }

    /// Both agencies broadcast to every resident.
    async fn broadcast(&mut self, quiet: bool) -> Result<report::Broadcasts, Failure> {
        let agents =
            ADMINISTRATIONS.map(|name| (name, self.federation.layout.address(&format!("agent-{name}"))));
        let agent_of = |administration: &str| {
            let found = agents.iter().find(|(name, _)| *name == administration);
            found.map(|(_, address)| format!("http://{address}")).unwrap_or_default()
        };
        tokio::select! {
            broadcasts = broadcast::run(agent_of, &self.residents, quiet) => broadcasts,
            ended = self.federation.ended() => { ended?; Err(Failure::Stopped) }
        }
    }

    fn search(&self) -> Result<Vec<(&'static str, visibility::Seen)>, Failure> {
        let searcher = Searcher::new(self.secrets.clone())?;
        visibility::parties(&self.federation.layout)
            .into_iter()
            .map(|(party, folders)| Ok((party, searcher.search(&folders)?)))
            .collect()
    }
}

/// Starts an administration's node and agent; gives the agent's endpoint.
///
/// # Errors
/// A port is taken, or somebody refuses.
pub(crate) async fn start_administration(
    federation: &mut LocalFederation,
    administration: &str,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    shutdown: &CancellationToken,
) -> Result<Endpoint, Failure> {
    let folder = federation.layout.path(&format!("agent-{administration}"));
    let config = EndpointConfig {
        store: folder.join("endpoint.db"),
        node: name(administration)?,
        node_endpoint: federation.layout.address(&format!("node-{administration}")).to_string(),
        federation: federation.bundle.clone(),
        credentials: federation.agent_credentials(administration).await?,
        stock: 16,
        clock: Arc::clone(clock),
        entropy: Arc::clone(entropy),
    };
    let endpoint = Endpoint::open(config).await?;
    let key = AgentKey::try_from(endpoint.identity().credential_key.as_slice())?;
    federation.start_node(administration, key).await?;
    endpoint.register().await?;
    let listener = federation.listen(&format!("agent-{administration}")).await?;
    let (running, stopped) = (endpoint.clone(), shutdown.clone());
    federation.spawn(async move {
        running.run(stopped).await;
        Ok(())
    });
    let (entropy, stopped, serving) = (Arc::clone(entropy), shutdown.clone(), endpoint.clone());
    federation.spawn(async move {
        Ok(chancery_sdk::agent::serve(serving, &folder, listener, entropy, stopped).await?)
    });
    Ok(endpoint)
}

async fn enrol(
    (federation, registry): (&mut LocalFederation, &Registry),
    mailing: &Mailing,
    tally: &Arc<Tally>,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    quiet: bool,
) -> Result<Vec<Resident>, Failure> {
    let bar = bar(mailing.recipients.len(), "residents enrolled", quiet);
    let credentials = federation.device_credentials().await?;
    let federation = &*federation;
    let residents = mailing.recipients.iter().zip(&mailing.letters).enumerate();
    let enrolled = futures::stream::iter(residents)
        .map(|(number, (recipient, letter))| {
            let expected = Expected {
                markdown: letter.letter.as_ref().map(|l| l.markdown.clone()).unwrap_or_default(),
                attachments: Arc::clone(&mailing.attachments),
            };
            let parts = (Arc::clone(&credentials), Arc::clone(clock), Arc::clone(entropy));
            let parties = (federation, registry);
            let resident = Resident::enrol(parties, number, recipient, expected, Arc::clone(tally), parts);
            let bar = bar.clone();
            async move {
                let resident = resident.await?;
                bar.inc(1);
                Ok::<_, Failure>(resident)
            }
        })
        .buffer_unordered(ENROLLING)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(enrolled)
}

/// What is looked for on every party's disk.
fn secrets(mailing: &Mailing, residents: &[Resident]) -> Vec<(Secret, Vec<u8>)> {
    let mut secrets = vec![
        (Secret::Content, ANSWER.as_bytes().to_vec()),
        (Secret::Content, broadcast::TEXT.as_bytes().to_vec()),
    ];
    for recipient in &mailing.recipients {
        secrets.push((Secret::Identifier, recipient.identifier.value().as_bytes().to_vec()));
        secrets.extend(recipient.fields.get("name").map(|n| (Secret::Content, n.as_bytes().to_vec())));
    }
    for letter in mailing.letters.iter().filter_map(|request| request.letter.as_ref()) {
        let middle: String = letter.markdown.chars().skip(80).take(60).collect();
        secrets.push((Secret::Content, middle.into_bytes()));
    }
    for attachment in mailing.attachments.iter() {
        let middle = attachment.len() / 2;
        secrets.extend(attachment.get(middle..middle + 48).map(|b| (Secret::Content, b.to_vec())));
    }
    for resident in residents {
        let handle = resident.handle();
        secrets.push((Secret::Handle, handle.as_bytes().to_vec()));
        secrets.push((Secret::Handle, hex::encode(handle.as_bytes()).into_bytes()));
    }
    secrets
}

/// A bar for `length` of something; nothing when `quiet`.
pub(crate) fn bar(length: usize, what: &'static str, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} ({elapsed})");
    let bar = ProgressBar::new(length as u64).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Writes to standard output; a reader that went away is no failure of ours.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
