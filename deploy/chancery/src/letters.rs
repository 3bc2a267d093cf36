//! `chancery send`, `inbox` and `events`: an agent's letters from the command
//! line, by the same API that other languages use.

use crate::Failure;
use crate::local::mailing_run::connect;
use chancery_proto::agent::v1 as agent;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_types::{Entropy, SystemEntropy, Timestamp};
use clap::Args;
use indicatif::ProgressBar;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

/// Files up to here go inside the request, larger ones ahead of it.
const INLINE: u64 = 1024 * 1024;
/// Bytes of one message of an upload.
const PIECE: usize = 64 * 1024;

/// Which agent.
#[derive(Args)]
pub(crate) struct AgentAddress {
    /// Where the agent listens.
    #[arg(long, default_value = "http://127.0.0.1:7404", env = "CHANCERY_AGENT", value_name = "URL")]
    pub(crate) agent: String,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Send a letter through an agent.
#[derive(Args)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// Recipient: SCHEME:VALUE, for example be-nn:85.07.30-033.28.
    #[arg(long, value_name = "IDENTIFIER", required_unless_present = "thread")]
    to: Option<String>,
    /// Thread to write in instead, as `chancery inbox` shows it.
    #[arg(long, value_name = "ID", conflicts_with = "to")]
    thread: Option<String>,
    /// Letter that this one answers.
    #[arg(long, value_name = "MESSAGE")]
    reply_to: Option<String>,
    /// The letter, in CommonMark.
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    text: Option<String>,
    /// File with the letter; `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// File to attach; may be given several times, up to 100 MiB each.
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
    /// Language of the letter, for example nl-BE.
    #[arg(long, default_value = "", value_name = "TAG", hide_default_value = true)]
    language: String,
    /// UUID of the request: the same id sends once. Default: a new one.
    #[arg(long, value_name = "UUID")]
    request_id: Option<String>,
}

/// Show the letters that came in at an agent.
#[derive(Args)]
pub(crate) struct InboxArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// Position after which to begin. Default: behind the last acknowledged letter.
    #[arg(long, default_value_t = 0, value_name = "POSITION")]
    after: u64,
    /// Wait for more.
    #[arg(long)]
    follow: bool,
    /// Save attachments in this folder, named by letter and index.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
}

/// Show what became of the letters that an agent sent.
#[derive(Args)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// Position after which to begin.
    #[arg(long, default_value_t = 0, value_name = "POSITION")]
    after: u64,
    /// Wait for more.
    #[arg(long)]
    follow: bool,
}

/// Runs `chancery send`.
///
/// # Errors
/// A file cannot be read, or the agent refuses.
pub(crate) async fn send(args: SendArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let request_id = args.request_id.unwrap_or_else(new_id);
    let mut attachments = Vec::with_capacity(args.attach.len());
    for path in &args.attach {
        attachments.push(attach(&mut client, path).await?);
    }
    let to = match (args.thread, args.to) {
        (Some(thread), _) => agent::send_request::To::ThreadId(thread),
        (None, to) => agent::send_request::To::Recipient(identifier(&to.unwrap_or_default())?),
    };
    let request = agent::SendRequest {
        request_id: request_id.clone(),
        to: Some(to),
        letter: Some(agent::Letter {
            markdown: text(args.text, args.file)?,
            language: args.language,
            attachments,
            in_reply_to: args.reply_to.unwrap_or_default(),
        }),
        expires_at_ms: 0,
    };
    let sent = client.send(request).await.map_err(Failure::call)?.into_inner();
    if args.agent.json {
        return line(&serde_json::json!({
            "request_id": request_id, "message_id": sent.message_id, "thread_id": sent.thread_id,
            "accepted_at": time(sent.accepted_at_ms),
        }));
    }
    text_line(&format!(
        "accepted {}\nrequest  {request_id}\nmessage  {}\nthread   {}",
        time(sent.accepted_at_ms),
        sent.message_id,
        sent.thread_id
    ))
}

/// Runs `chancery inbox`.
///
/// # Errors
/// The agent refuses, or an attachment cannot be saved.
pub(crate) async fn inbox(args: InboxArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let request = agent::InboxRequest { after: args.after, drain: !args.follow };
    let mut letters = client.inbox(request).await.map_err(Failure::call)?.into_inner();
    while let Some(letter) = letters.next().await {
        let letter = letter.map_err(Failure::call)?;
        if let Some(folder) = &args.save {
            for attachment in &letter.attachments {
                save(&mut client, &letter.message_id, attachment, folder).await?;
            }
        }
        if args.agent.json {
            line(&inbox_json(&letter))?;
        } else {
            text_line(&inbox_text(&letter))?;
        }
    }
    Ok(())
}

/// Runs `chancery events`.
///
/// # Errors
/// The agent refuses.
pub(crate) async fn events(args: EventsArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let request = agent::EventsRequest { after: args.after, drain: !args.follow };
    let mut events = client.events(request).await.map_err(Failure::call)?.into_inner();
    while let Some(event) = events.next().await {
        let event = event.map_err(Failure::call)?;
        let kind = event.kind().as_str_name().trim_start_matches("EVENT_KIND_").to_lowercase();
        if args.agent.json {
            line(&serde_json::json!({
                "position": event.position, "message_id": event.message_id, "request_id": event.request_id,
                "kind": kind, "occurred_at": time(event.occurred_at_ms), "reason": event.reason,
            }))?;
        } else {
            let text = format!(
                "{:>6}  {}  {kind:<9}  {}  {}",
                event.position,
                time(event.occurred_at_ms),
                event.request_id,
                event.reason
            );
            text_line(text.trim_end())?;
        }
    }
    Ok(())
}

fn identifier(text: &str) -> Result<agent::Identifier, Failure> {
    let (scheme, value) =
        text.split_once(':').ok_or_else(|| Failure::Letter("--to is SCHEME:VALUE".to_owned()))?;
    Ok(agent::Identifier { scheme: scheme.to_owned(), value: value.to_owned() })
}

fn text(text: Option<String>, file: Option<PathBuf>) -> Result<String, Failure> {
    match (text, file) {
        (Some(text), _) => Ok(text),
        (None, Some(path)) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            Ok(text)
        }
        (None, Some(path)) => Ok(std::fs::read_to_string(path)?),
        (None, None) => Err(Failure::Letter("give the letter with --text or --file".to_owned())),
    }
}

async fn attach(client: &mut AgentServiceClient<Channel>, path: &Path) -> Result<agent::Attachment, Failure> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::Letter("an attachment needs a file name in UTF-8".to_owned()))?;
    let size = std::fs::metadata(path)?.len();
    let source = if size <= INLINE {
        agent::attachment::Source::Data(std::fs::read(path)?.into())
    } else {
        agent::attachment::Source::AttachmentId(upload(client, path, size).await?)
    };
    let media_type = media_type(path).to_owned();
    Ok(agent::Attachment { file_name: name.to_owned(), media_type, source: Some(source) })
}

async fn upload(client: &mut AgentServiceClient<Channel>, path: &Path, size: u64) -> Result<String, Failure> {
    let id = new_id();
    let bar = ProgressBar::new(size);
    let mut file = std::fs::File::open(path)?;
    let mut first = true;
    let (attachment_id, shown) = (id.clone(), bar.clone());
    let pieces = std::iter::from_fn(move || {
        let mut data = vec![0; PIECE];
        let length = file.read(&mut data).ok().filter(|length| *length > 0)?;
        data.truncate(length);
        shown.inc(length as u64);
        let head = std::mem::take(&mut first);
        Some(agent::PutAttachmentRequest {
            attachment_id: if head { attachment_id.clone() } else { String::new() },
            size: if head { size } else { 0 },
            offset: 0,
            data: data.into(),
        })
    });
    client.put_attachment(tokio_stream::iter(pieces)).await.map_err(Failure::call)?;
    bar.finish_and_clear();
    Ok(id)
}

async fn save(
    client: &mut AgentServiceClient<Channel>,
    message_id: &str,
    attachment: &agent::InboxAttachment,
    folder: &Path,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    let request =
        agent::GetAttachmentRequest { message_id: message_id.to_owned(), index: attachment.index, offset: 0 };
    let mut pieces = client.get_attachment(request).await.map_err(Failure::call)?.into_inner();
    // Never the sender's file name: it is anything.
    let mut file = std::fs::File::create(folder.join(format!("{message_id}-{}", attachment.index)))?;
    while let Some(piece) = pieces.next().await {
        file.write_all(&piece.map_err(Failure::call)?.data)?;
    }
    Ok(file.sync_all()?)
}

/// Media type by extension, for the common ones.
fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("pdf") => "application/pdf",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("txt" | "md") => "text/plain",
        Some("xml") => "application/xml",
        Some("json") => "application/json",
        _ => "application/octet-stream",
    }
}

fn inbox_json(letter: &agent::InboxResponse) -> serde_json::Value {
    let attachment = |a: &agent::InboxAttachment| serde_json::json!({ "index": a.index, "file_name": a.file_name, "media_type": a.media_type, "size": a.size });
    serde_json::json!({
        "position": letter.position, "message_id": letter.message_id, "thread_id": letter.thread_id,
        "request_id": letter.request_id, "in_reply_to": letter.in_reply_to, "markdown": letter.markdown,
        "received_at": time(letter.received_at_ms),
        "attachments": letter.attachments.iter().map(attachment).collect::<Vec<_>>(),
        "unknown_parts": letter.unknown_parts,
    })
}

fn inbox_text(letter: &agent::InboxResponse) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "── {} · {} · message {}\n   thread {}\n",
        letter.position,
        time(letter.received_at_ms),
        letter.message_id,
        letter.thread_id
    );
    if !letter.in_reply_to.is_empty() {
        let _ = writeln!(text, "   answers {} (request {})", letter.in_reply_to, letter.request_id);
    }
    for a in &letter.attachments {
        let _ = writeln!(
            text,
            "   attachment {}: {:?}, {}, {} bytes",
            a.index, a.file_name, a.media_type, a.size
        );
    }
    for part in &letter.unknown_parts {
        let _ = writeln!(text, "   a part of kind {part:?} that this agent does not know");
    }
    // Control characters of a stranger's letter must not reach the terminal.
    let body = letter
        .markdown
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c });
    let _ = writeln!(text, "\n{}", body.collect::<String>());
    text
}

pub(crate) fn new_id() -> String {
    let entropy: &dyn Entropy = &SystemEntropy;
    uuid::Builder::from_random_bytes(entropy.array()).into_uuid().to_string()
}

pub(crate) fn time(millis: i64) -> String {
    Timestamp::from_millis(millis).to_string()
}

pub(crate) fn line(value: &serde_json::Value) -> Result<(), Failure> {
    text_line(&value.to_string())
}

pub(crate) fn text_line(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
