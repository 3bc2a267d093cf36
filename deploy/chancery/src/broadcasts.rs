//! `chancery channel` and `chancery broadcast`: an agent's channels from the command line, by the same
//! API that other languages use.

use crate::Failure;
use crate::letters::{AgentAddress, line, new_id, text_line, time};
use crate::local::mailing_run::connect;
use chancery_proto::agent::v1 as agent;
use chancery_proto::content::v1::Condition;
use chancery_types::Timestamp;
use clap::{Args, Subcommand};
use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use tokio_stream::StreamExt as _;

/// Broadcast channels of an agent.
#[derive(Args)]
pub(crate) struct ChannelArgs {
    #[command(subcommand)]
    command: ChannelCommand,
}

#[derive(Subcommand)]
enum ChannelCommand {
    /// Publish a channel, or change it.
    Put(Box<PutArgs>),
    /// List the agent's channels and how many residents are in them.
    List(ListArgs),
    /// Print an invitation to a channel that is not open to all.
    Invite(InviteArgs),
    /// Take a broadcast back that waits until it is to begin.
    Cancel(CancelArgs),
    /// Show what became of a broadcast, an hour, a day and a week after it: sums of each node, with noise.
    Counts(CountsArgs),
}

#[derive(Args)]
struct PutArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// UUID of the channel, chosen by you, for ever. Default: a new channel.
    #[arg(long, value_name = "UUID")]
    channel: Option<String>,
    /// What people read about it, as TAG=NAME or TAG=NAME/DESCRIPTION, for example
    /// "en=Flood warnings/Rivers and coast". May be given for several languages.
    #[arg(long = "text", value_name = "TAG=NAME", required = true)]
    texts: Vec<String>,
    /// Where people ask about it: an https:, mailto: or tel: URL.
    #[arg(long, value_name = "URL")]
    contact: String,
    /// Coarse category, 0 to 7.
    #[arg(long, default_value_t = 0, value_name = "N")]
    category: u32,
    /// Only who holds an invitation may come in.
    #[arg(long)]
    by_invitation: bool,
    /// Use the classical cipher suite instead of the hybrid post-quantum one.
    #[arg(long)]
    classical: bool,
    /// Most residents in a cell. Default: 128, or 256 in the classical suite.
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    cell_size: u32,
    /// May carry emergencies: for accredited administrations alone.
    #[arg(long)]
    emergency: bool,
    /// How many of the latest broadcasts somebody who joins may read.
    #[arg(long, default_value_t = 0, value_name = "N")]
    history: u32,
    /// Close it: nothing is broadcast on it any more. Final.
    #[arg(long)]
    close: bool,
    /// Devices of the administration's residents join by themselves, unless they leave it.
    #[arg(long, conflicts_with = "by_invitation")]
    for_residents: bool,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    agent: AgentAddress,
}

#[derive(Args)]
struct InviteArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// The channel.
    #[arg(long, value_name = "UUID")]
    channel: String,
}

#[derive(Args)]
struct CountsArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// The channel.
    #[arg(long, value_name = "UUID")]
    channel: String,
    /// Sequence of the broadcast.
    #[arg(long, value_name = "SEQUENCE")]
    sequence: u64,
}

#[derive(Args)]
struct CancelArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// UUID of the request, as `chancery channel list` shows it.
    #[arg(long, value_name = "UUID")]
    request_id: String,
}

/// Broadcast to everybody in a channel, encrypted end to end.
///
/// Shows first what everybody will be able to read of it in the directory's log, for ever, and asks.
#[derive(Args)]
pub(crate) struct BroadcastArgs {
    #[command(flatten)]
    agent: AgentAddress,
    /// The channel, as `chancery channel list` shows it.
    #[arg(long, value_name = "UUID")]
    channel: String,
    /// File with the text in CommonMark, as FILE or TAG=FILE with its language. May be given for
    /// several languages, the favourite first: each device shows the one that its owner reads.
    #[arg(long = "file", value_name = "[TAG=]FILE", required = true)]
    files: Vec<String>,
    /// It is an emergency.
    #[arg(long)]
    emergency: bool,
    /// Sequence of an earlier broadcast whose place it takes.
    #[arg(long, value_name = "SEQUENCE")]
    corrects: Option<u64>,
    /// Sequence of an earlier broadcast that is to be disregarded.
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "corrects")]
    recalls: Option<u64>,
    /// When it is to begin, as in RFC 3339: 2030-01-31T08:00:00+01:00. Default: at once.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Only for who lives there, by a code in which the name of a part begins with that of the whole, for
    /// example BE2. May be given several times. Devices judge for themselves; nobody learns who was meant.
    #[arg(long = "area", value_name = "CODE")]
    areas: Vec<String>,
    /// Only for who has at least so many full years.
    #[arg(long, default_value_t = 0, value_name = "YEARS", hide_default_value = true)]
    min_age: u32,
    /// Only for who has at most so many full years.
    #[arg(long, default_value_t = 0, value_name = "YEARS", hide_default_value = true)]
    max_age: u32,
    /// Only for who follows this topic. May be given several times.
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
    /// UUID of the request: the same id broadcasts once. Default: a new one.
    #[arg(long, value_name = "UUID")]
    request_id: Option<String>,
    /// Wait until the homes of all residents have it.
    #[arg(long)]
    follow: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Runs `chancery channel`.
///
/// # Errors
/// The agent refuses.
pub(crate) async fn channel(args: ChannelArgs) -> Result<(), Failure> {
    match args.command {
        ChannelCommand::Put(args) => put(*args).await,
        ChannelCommand::List(args) => list(args).await,
        ChannelCommand::Invite(args) => invite(args).await,
        ChannelCommand::Cancel(args) => cancel(args).await,
        ChannelCommand::Counts(args) => counts(args).await,
    }
}

async fn put(args: PutArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let channel_id = args.channel.unwrap_or_else(new_id);
    let request = agent::PutChannelRequest {
        channel_id: channel_id.clone(),
        texts: args.texts.iter().map(|text| described(text)).collect::<Result<_, _>>()?,
        by_invitation: args.by_invitation,
        category: args.category,
        contact: args.contact,
        classical: args.classical,
        cell_size: args.cell_size,
        emergency: args.emergency,
        history: args.history,
        closed: args.close,
        for_residents: args.for_residents,
    };
    let put = client.put_channel(request).await.map_err(Failure::call)?.into_inner();
    if args.agent.json {
        return line(&serde_json::json!({
            "channel_id": channel_id, "version": put.version, "index": put.index,
        }));
    }
    text_line(&format!("channel {channel_id}\nversion {}\nentry   {} of the log", put.version, put.index))
}

fn described(text: &str) -> Result<(String, agent::ChannelText), Failure> {
    let wrong = || Failure::Letter("--text is TAG=NAME or TAG=NAME/DESCRIPTION".to_owned());
    let (tag, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (name, description) = rest.split_once('/').unwrap_or((rest, ""));
    let text = agent::ChannelText { name: name.to_owned(), description: description.to_owned() };
    Ok((tag.to_owned(), text))
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let answer = client.list_channels(agent::ListChannelsRequest {}).await.map_err(Failure::call)?;
    for state in answer.into_inner().channels {
        let channel = state.channel.unwrap_or_default();
        let name = channel.texts.values().map(|text| text.name.as_str()).min().unwrap_or_default();
        if args.agent.json {
            line(&serde_json::json!({
                "channel_id": channel.channel_id, "name": name, "sequence": state.sequence,
                "residents": state.residents, "cells": state.cells, "by_invitation": channel.by_invitation,
                "emergency": channel.emergency, "history": channel.history, "closed": channel.closed,
                "for_residents": channel.for_residents,
                "scheduled": state.scheduled.iter().map(|waits| serde_json::json!({
                    "request_id": waits.request_id, "begins_at": time(waits.begins_at_ms),
                })).collect::<Vec<_>>(),
            }))?;
        } else {
            text_line(&format!(
                "{}  {:>8} broadcasts  {:>9} residents in {:>6} cells  {name:?}{}",
                channel.channel_id,
                state.sequence,
                state.residents,
                state.cells,
                if channel.closed { "  closed" } else { "" }
            ))?;
            for waits in state.scheduled {
                text_line(&format!("  {}  begins {}", waits.request_id, time(waits.begins_at_ms)))?;
            }
        }
    }
    Ok(())
}

async fn invite(args: InviteArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let request = agent::InviteRequest { channel_id: args.channel };
    let answer = client.invite(request).await.map_err(Failure::call)?.into_inner();
    let invitation = hex::encode(answer.invitation);
    if args.agent.json {
        return line(&serde_json::json!({ "invitation": invitation }));
    }
    text_line(&invitation)
}

async fn counts(args: CountsArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let request = agent::BroadcastCountsRequest { channel_id: args.channel, sequence: args.sequence };
    let counts = client.broadcast_counts(request).await.map_err(Failure::call)?.into_inner();
    if args.agent.json {
        return line(&serde_json::json!({
            "delivered": counts.delivered, "read": counts.read,
            "nodes": counts.nodes.iter().map(|node| serde_json::json!({
                "administration": node.administration, "delivered": node.delivered, "read": node.read,
            })).collect::<Vec<_>>(),
        }));
    }
    text_line(&format!("{:<20} {:>12} {:>12}", "", "delivered", "read"))?;
    for node in &counts.nodes {
        text_line(&format!(
            "{:<20} {:>12} {:>12}",
            node.administration,
            told(node.delivered),
            told(node.read)
        ))?;
    }
    text_line(&format!("{:<20} {:>12} {:>12}", "all that told", counts.delivered, counts.read))
}

fn told(sum: u64) -> String {
    if sum == 0 { "below 20".to_owned() } else { sum.to_string() }
}

async fn cancel(args: CancelArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let request = agent::CancelBroadcastRequest { request_id: args.request_id };
    let cancelled = client.cancel_broadcast(request).await.map_err(Failure::call)?.into_inner().cancelled;
    if args.agent.json {
        return line(&serde_json::json!({ "cancelled": cancelled }));
    }
    text_line(if cancelled {
        "taken back"
    } else {
        "nothing waits under this id: it has begun, or was not asked for"
    })
}

/// Runs `chancery broadcast`.
///
/// # Errors
/// A file cannot be read, nobody says yes, or the agent refuses.
pub(crate) async fn broadcast(args: BroadcastArgs) -> Result<(), Failure> {
    let mut client = connect(&args.agent.agent).await?;
    let about = match (args.corrects, args.recalls) {
        (Some(sequence), _) => Some(agent::broadcast_request::About::Corrects(sequence)),
        (None, Some(sequence)) => Some(agent::broadcast_request::About::Recalls(sequence)),
        (None, None) => None,
    };
    let condition =
        Condition { areas: args.areas, min_age: args.min_age, max_age: args.max_age, topics: args.topics };
    let request = agent::BroadcastRequest {
        request_id: args.request_id.unwrap_or_else(new_id),
        channel_id: args.channel,
        bodies: args.files.iter().map(|file| body(file)).collect::<Result<_, _>>()?,
        emergency: args.emergency,
        about,
        expires_at_ms: 0,
        preview: false,
        begins_at_ms: args.at.map_or(0, Timestamp::millis),
        condition: (condition != Condition::default()).then_some(condition),
        follow: args.follow,
    };
    if !args.yes {
        let preview = agent::BroadcastRequest { preview: true, ..request.clone() };
        let mut answers = client.broadcast(preview).await.map_err(Failure::call)?.into_inner();
        let answer = answers.next().await.transpose().map_err(Failure::call)?.unwrap_or_default();
        text_line(&preview_text(&answer, request.begins_at_ms))?;
        if !agreed()? {
            return Err(Failure::Letter("nothing was broadcast".to_owned()));
        }
    }
    let mut answers = client.broadcast(request.clone()).await.map_err(Failure::call)?.into_inner();
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(Failure::call)?;
        let stage = answer.stage().as_str_name().trim_start_matches("BROADCAST_STAGE_").to_lowercase();
        if args.agent.json {
            line(&serde_json::json!({
                "request_id": request.request_id, "sequence": answer.sequence, "stage": stage,
                "cells": answer.cells, "residents": answer.residents, "homes": answer.homes,
                "accepted": answer.accepted,
            }))?;
        } else {
            text_line(&format!(
                "broadcast {}  {:<11}  {} residents in {} cells, accepted by {} of {} homes",
                answer.sequence,
                stage.replace('_', " "),
                answer.residents,
                answer.cells,
                answer.accepted,
                answer.homes
            ))?;
        }
    }
    Ok(())
}

fn body(file: &str) -> Result<agent::Letter, Failure> {
    let (language, path) = match file.split_once('=') {
        Some((tag, path)) => (tag.to_owned(), PathBuf::from(path)),
        None => (String::new(), PathBuf::from(file)),
    };
    Ok(agent::Letter { markdown: std::fs::read_to_string(path)?, language, ..agent::Letter::default() })
}

fn preview_text(answer: &agent::BroadcastResponse, begins_at_ms: i64) -> String {
    use std::fmt::Write as _;
    let preview = answer.preview.clone().unwrap_or_default();
    let mut names: Vec<_> =
        preview.channel_names.iter().map(|(tag, name)| format!("{name} ({tag})")).collect();
    names.sort();
    let mut text = format!(
        "Broadcast {} of the channel {} to {} residents.\n",
        answer.sequence,
        names.join(", "),
        answer.residents
    );
    let _ = write!(
        text,
        "Everybody can read in the directory's log, for ever:\n  size      {} bytes, padded\n  category  {}\n  \
         emergency {}\n  about     {}\n  expires   {}",
        preview.blob_size,
        preview.category,
        if preview.emergency { "yes" } else { "no" },
        if preview.about == 0 {
            "nothing earlier".to_owned()
        } else {
            format!("broadcast {}", preview.about)
        },
        time(preview.expires_at_ms)
    );
    if begins_at_ms != 0 {
        let _ = write!(text, "\nIt begins {}; until then it can be taken back.", time(begins_at_ms));
    }
    text
}

/// Asks on the terminal.
fn agreed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Letter("nobody can be asked; say --yes".to_owned()));
    }
    text_line("Send it? [y/N]")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
