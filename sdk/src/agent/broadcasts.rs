//! Channels and broadcasts as the API shows them.

use super::send::expiry;
use super::{Answers, Rooms};
use crate::broadcast::sender::{Begun, Order, State};
use crate::content::{Letter, condition, sender_uri};
use crate::credential::AgentName;
use chancery_directory_core::channel::{Channel, JoinRule, MAX_HISTORY, Suite, Text};
use chancery_directory_core::manifest::About;
use chancery_proto::agent::v1 as wire;
use chancery_types::{ChannelId, Reason, Refusal, Timestamp};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most residents in a cell unless stated: by what a removal costs each of them (docs/decisions/0022).
const HYBRID_CELL: u32 = 128;
const CLASSICAL_CELL: u32 = 256;
/// Largest cell: its tree and commits fit into a parcel.
const MAX_CELL: u32 = 1_024;
/// Most languages of a broadcast.
const MAX_BODIES: usize = 32;

/// Publishes a channel, or its next version.
pub(super) async fn put_channel(
    rooms: &Rooms,
    request: wire::PutChannelRequest,
) -> Result<wire::PutChannelResponse, Refusal> {
    let id = channel_id(&request.channel_id)?;
    let identity = rooms.endpoint.identity();
    let agent = identity.agent.as_deref().and_then(AgentName::parse);
    let agent = agent.ok_or_else(|| Refusal::new(Reason::WrongIdentity, "only agents speak on channels"))?;
    let standing = rooms.endpoint.own_channels().await?.into_iter().find(|(channel, _)| channel.id == id);
    let suite = if request.classical { Suite::Classical } else { Suite::Hybrid };
    let cell_size = match request.cell_size {
        0 if request.classical => CLASSICAL_CELL,
        0 => HYBRID_CELL,
        size if (2..=MAX_CELL).contains(&size) => size,
        _ => return Err(Refusal::field("cell_size is 2 to 1,024")),
    };
    if request.history > MAX_HISTORY {
        return Err(Refusal::field("history is at most 100"));
    }
    let texts = request.texts.into_iter();
    let mut channel = Channel {
        federation: identity.federation.clone(),
        id,
        version: standing.as_ref().map_or(1, |(channel, _)| channel.version),
        administration: agent.administration,
        agent: agent.name,
        texts: texts
            .map(|(tag, text)| (tag, Text { name: text.name, description: text.description }))
            .collect::<BTreeMap<_, _>>(),
        join_rule: if request.by_invitation { JoinRule::Invitation } else { JoinRule::Open },
        category: request.category,
        contact: request.contact,
        suite,
        cell_size,
        emergency: request.emergency,
        history: request.history,
        agent_alias: identity.alias,
        closed: request.closed,
        for_residents: request.for_residents,
    };
    if channel.for_residents && channel.join_rule == JoinRule::Invitation {
        return Err(Refusal::field("a channel that all residents join is open"));
    }
    if standing.is_some_and(|(standing, _)| standing != channel) {
        channel.version += 1;
    }
    let index = rooms.endpoint.publish_channel(&channel).await?;
    Ok(wire::PutChannelResponse { version: channel.version, index })
}

/// The channels of this agent.
pub(super) async fn list_channels(rooms: &Rooms) -> Result<wire::ListChannelsResponse, Refusal> {
    let mut channels = Vec::new();
    for (channel, sequence) in rooms.endpoint.own_channels().await? {
        let (residents, cells) = rooms.endpoint.audience(channel.id).await?;
        let scheduled = rooms.endpoint.scheduled_broadcasts(channel.id).await?.into_iter();
        let scheduled = scheduled.map(|(request_id, begins)| wire::ScheduledBroadcast {
            request_id: uuid::Uuid::from_bytes(request_id).to_string(),
            begins_at_ms: begins.millis(),
        });
        channels.push(wire::ChannelState {
            channel: Some(published(&channel)),
            sequence,
            residents,
            cells,
            scheduled: scheduled.collect(),
        });
    }
    Ok(wire::ListChannelsResponse { channels })
}

fn published(channel: &Channel) -> wire::PutChannelRequest {
    let text = |(tag, text): (&String, &Text)| {
        let text = wire::ChannelText { name: text.name.clone(), description: text.description.clone() };
        (tag.clone(), text)
    };
    wire::PutChannelRequest {
        channel_id: uuid::Uuid::from_bytes(*channel.id.as_bytes()).to_string(),
        texts: channel.texts.iter().map(text).collect(),
        by_invitation: channel.join_rule == JoinRule::Invitation,
        category: channel.category,
        contact: channel.contact.clone(),
        classical: channel.suite == Suite::Classical,
        cell_size: channel.cell_size,
        emergency: channel.emergency,
        history: channel.history,
        closed: channel.closed,
        for_residents: channel.for_residents,
    }
}

/// An invitation to a channel.
pub(super) async fn invite(
    rooms: &Rooms,
    request: &wire::InviteRequest,
) -> Result<wire::InviteResponse, Refusal> {
    let id = channel_id(&request.channel_id)?;
    let own = rooms.endpoint.own_channels().await?;
    let channel = own.iter().find(|(channel, _)| channel.id == id);
    let (channel, _) = channel
        .ok_or_else(|| Refusal::new(Reason::NotYourChannel, "the channel is not one of this agent's"))?;
    if channel.join_rule != JoinRule::Invitation {
        return Err(Refusal::field("the channel is open to all"));
    }
    let invitation = rooms.endpoint.invite(id).await?;
    Ok(wire::InviteResponse { invitation: bytes::Bytes::copy_from_slice(invitation.as_bytes()) })
}

/// Broadcasts, and streams how far it is.
pub(super) async fn broadcast(
    rooms: Arc<Rooms>,
    request: wire::BroadcastRequest,
    answers: Answers<wire::BroadcastResponse>,
) {
    rooms.stream(&answers, Box::pin(follow(&rooms, request, &answers))).await;
}

async fn follow(
    rooms: &Rooms,
    request: wire::BroadcastRequest,
    answers: &Answers<wire::BroadcastResponse>,
) -> Result<(), Refusal> {
    let (is_preview, follows) = (request.preview, request.follow);
    let order = order(rooms, request).await?;
    if is_preview {
        let (channel, manifest) = rooms.endpoint.preview_broadcast(order).await?;
        let names = channel.texts.iter().map(|(tag, text)| (tag.clone(), text.name.clone()));
        let preview = wire::BroadcastPreview {
            channel_names: names.collect(),
            blob_size: manifest.blob_size,
            category: manifest.category,
            emergency: manifest.emergency,
            about: match manifest.about {
                Some(About::Corrects(sequence) | About::Recalls(sequence)) => sequence,
                None => 0,
            },
            expires_at_ms: manifest.expires_at.millis(),
        };
        let answer = wire::BroadcastResponse {
            sequence: manifest.sequence,
            residents: rooms.endpoint.audience(channel.id).await?.0,
            preview: Some(preview),
            ..wire::BroadcastResponse::default()
        };
        let _ = answers.send(Ok(answer)).await;
        return Ok(());
    }
    let (request_id, digest, channel) = (order.request_id, order.digest, order.channel);
    let mut changes = rooms.endpoint.broadcast_changes();
    let mut now = rooms.endpoint.broadcast(order).await?;
    let mut told = None;
    loop {
        changes.mark_unchanged();
        let (homes, accepted) = rooms.endpoint.broadcast_homes(channel, now.sequence).await?;
        let stage = match stage(rooms, &now).await? {
            wire::BroadcastStage::HandedOver if follows && homes == accepted => {
                wire::BroadcastStage::Accepted
            }
            stage => stage,
        };
        if told != Some((stage, accepted)) {
            told = Some((stage, accepted));
            let answer = wire::BroadcastResponse {
                sequence: now.sequence,
                stage: stage.into(),
                cells: now.cells,
                residents: rooms.endpoint.audience(channel).await?.0,
                preview: None,
                homes,
                accepted,
            };
            let is_last = match stage {
                wire::BroadcastStage::HandedOver => !follows,
                stage => matches!(stage, wire::BroadcastStage::Accepted | wire::BroadcastStage::Scheduled),
            };
            if answers.send(Ok(answer)).await.is_err() || is_last {
                return Ok(());
            }
        }
        if changes.changed().await.is_err() {
            return Ok(());
        }
        let gone = || Refusal::new(Reason::Internal, "the broadcast is gone");
        now = rooms.endpoint.broadcast_state(request_id, digest).await?.ok_or_else(gone)?;
    }
}

async fn stage(rooms: &Rooms, now: &Begun) -> Result<wire::BroadcastStage, Refusal> {
    Ok(match now.state {
        State::Scheduled => wire::BroadcastStage::Scheduled,
        State::Begun => wire::BroadcastStage::Begun,
        State::Logged => wire::BroadcastStage::Logged,
        State::Wrapped if rooms.endpoint.is_handed_over().await? => wire::BroadcastStage::HandedOver,
        State::Wrapped => wire::BroadcastStage::Wrapped,
    })
}

/// Checks a request and makes its content; attachments are brought to the node.
async fn order(rooms: &Rooms, mut request: wire::BroadcastRequest) -> Result<Order, Refusal> {
    let request_id = uuid(&request.request_id)?;
    request.request_id = request_id.to_string();
    (request.preview, request.follow) = (false, false);
    let digest = Sha256::digest(request.encode_to_vec()).into();
    if request.bodies.is_empty() || request.bodies.len() > MAX_BODIES {
        return Err(Refusal::field("bodies has 1 to 32 entries"));
    }
    let languages: BTreeSet<_> = request.bodies.iter().map(|body| &body.language).collect();
    if languages.len() != request.bodies.len() {
        return Err(Refusal::field("each of bodies has a language of its own"));
    }
    let about = request.about.map(|about| match about {
        wire::broadcast_request::About::Corrects(sequence) => About::Corrects(sequence),
        wire::broadcast_request::About::Recalls(sequence) => About::Recalls(sequence),
    });
    let begins = (request.begins_at_ms != 0).then(|| Timestamp::from_millis(request.begins_at_ms));
    let now = rooms.endpoint.now();
    let begun = begins.map_or(now, |begins| begins.max(now));
    let (channel, expires) = (channel_id(&request.channel_id)?, expiry(begun, request.expires_at_ms)?);
    let mut letters = Vec::with_capacity(request.bodies.len());
    for body in request.bodies {
        let mut attachments = Vec::with_capacity(body.attachments.len());
        for attachment in body.attachments {
            attachments.push(rooms.files.bring(&rooms.files.find(attachment)?).await?);
        }
        letters.push(Letter {
            markdown: body.markdown,
            language: body.language,
            in_reply_to: None,
            attachments,
        });
    }
    let identity = rooms.endpoint.identity();
    let sender = sender_uri(&identity.federation, &identity.alias);
    let room = crate::broadcast::channel_uri(&identity.federation, &channel);
    if let Some(condition) = &request.condition {
        condition::check(condition).map_err(|error| Refusal::field(error.to_string()))?;
    }
    let condition = request.condition.as_ref();
    let composed = Letter::compose_choice(&letters, condition, &sender, &room, &*rooms.entropy);
    let content = composed.map_err(|error| Refusal::field(error.to_string()))?.bytes;
    Ok(Order {
        request_id: request_id.into_bytes(),
        digest,
        channel,
        content,
        emergency: request.emergency,
        about,
        expires,
        begins,
    })
}

/// What became of a broadcast.
pub(super) async fn counts(
    rooms: &Rooms,
    request: &wire::BroadcastCountsRequest,
) -> Result<wire::BroadcastCountsResponse, Refusal> {
    let id = channel_id(&request.channel_id)?;
    let nodes = rooms.endpoint.broadcast_counts(id, request.sequence).await?.into_iter();
    let nodes: Vec<_> = nodes
        .map(|(administration, delivered, read)| wire::NodeCount {
            administration: administration.to_string(),
            delivered,
            read,
        })
        .collect();
    let sum = |of: fn(&wire::NodeCount) -> u64| nodes.iter().map(of).fold(0, u64::saturating_add);
    Ok(wire::BroadcastCountsResponse {
        delivered: sum(|node| node.delivered),
        read: sum(|node| node.read),
        nodes: nodes.clone(),
    })
}

/// Takes a broadcast back that waits.
pub(super) async fn cancel(
    rooms: &Rooms,
    request: &wire::CancelBroadcastRequest,
) -> Result<wire::CancelBroadcastResponse, Refusal> {
    let request_id = uuid(&request.request_id)?.into_bytes();
    Ok(wire::CancelBroadcastResponse { cancelled: rooms.endpoint.cancel_broadcast(request_id).await? })
}

fn uuid(request_id: &str) -> Result<uuid::Uuid, Refusal> {
    request_id.parse().map_err(|_| Refusal::field("request_id is no UUID"))
}

fn channel_id(text: &str) -> Result<ChannelId, Refusal> {
    let id: uuid::Uuid = text.parse().map_err(|_| Refusal::field("channel_id is no UUID"))?;
    Ok(ChannelId::from_bytes(id.into_bytes()))
}
