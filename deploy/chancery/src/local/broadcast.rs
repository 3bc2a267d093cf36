//! After the letters, both agencies broadcast to every resident of a local federation.

use super::layout::ADMINISTRATIONS;
use super::mailing_run::connect;
use super::report::Broadcasts;
use super::{bar, federation};
use crate::Failure;
use chancery_proto::agent::v1 as agent;
use chancery_sdk::content::Body;
use chancery_sdk::endpoint::Endpoint;
use chancery_types::ChannelId;
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;

/// Longest standstill before a run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the agencies say begins so; searched for on the others' disks.
pub(super) const TEXT: &str = "The counters stay closed on Monday";

/// Channel of an administration: the same each time that the folder is used.
fn channel_id(administration: &str) -> ChannelId {
    let mut id = [0x42; 16];
    id.iter_mut().zip(administration.bytes()).for_each(|(byte, letter)| *byte = letter);
    ChannelId::from_bytes(id)
}

/// Publishes the channels by the agents whose addresses `agent_of` gives, brings the residents in, broadcasts on each, and waits until every
/// resident has read it.
///
/// # Errors
/// Somebody refuses, or nothing moves any more.
pub(super) async fn run(
    agent_of: impl Fn(&str) -> String,
    residents: &[Endpoint],
    quiet: bool,
) -> Result<Broadcasts, Failure> {
    let (mut agents, mut last) = (BTreeMap::new(), 0);
    for administration in ADMINISTRATIONS {
        let mut client = connect(&agent_of(administration)).await?;
        let text = agent::ChannelText {
            name: format!("{} news", federation::display_name(administration)),
            description: "What is new at our counters.".to_owned(),
        };
        let request = agent::PutChannelRequest {
            channel_id: uuid::Uuid::from_bytes(*channel_id(administration).as_bytes()).to_string(),
            texts: BTreeMap::from([("en".to_owned(), text)]),
            contact: "https://example.org/contact".to_owned(),
            category: 1,
            ..agent::PutChannelRequest::default()
        };
        let put = client.put_channel(request.clone()).await.map_err(Failure::call)?.into_inner();
        last = last.max(put.index);
        agents.insert(administration, (client, request.channel_id));
    }
    let all = residents.len() * agents.len();
    let mut channels = Vec::new();
    for administration in ADMINISTRATIONS {
        // As a device finds it: by a root of the map behind its entry.
        let Some(resident) = residents.first() else { return Ok(Broadcasts::default()) };
        let head = resident.channel(&channel_id(administration), last).await?;
        channels.extend(head.map(|head| head.channel.channel().clone()));
    }
    for resident in residents {
        for channel in &channels {
            resident.subscribe(channel, None).await?;
        }
    }
    progress(&bar(all, "residents in channels", quiet), all, async || {
        let mut seated = 0;
        for resident in residents {
            seated += resident.subscriptions().await?.iter().filter(|(_, is_in)| *is_in).count();
        }
        Ok(seated)
    })
    .await?;

    let begun = Instant::now();
    let mut broadcasts = Broadcasts::default();
    for (administration, (client, channel_id)) in &mut agents {
        let request = agent::BroadcastRequest {
            // One broadcast on each: started again, a federation sends nothing again.
            request_id: channel_id.clone(),
            channel_id: channel_id.clone(),
            bodies: [("en", TEXT), ("nl", "De loketten blijven maandag gesloten")]
                .map(|(language, text)| agent::Letter {
                    markdown: format!("{text}, says the {administration} agency."),
                    language: language.to_owned(),
                    ..agent::Letter::default()
                })
                .to_vec(),
            ..agent::BroadcastRequest::default()
        };
        let mut answers = client.broadcast(request).await.map_err(Failure::call)?.into_inner();
        while let Some(answer) = answers.next().await {
            broadcasts.cells = broadcasts.cells.max(answer.map_err(Failure::call)?.cells);
        }
        broadcasts.sent += 1;
    }
    progress(&bar(all, "broadcasts read", quiet), all, async || {
        let mut read = 0;
        for resident in residents {
            read += read_by(resident).await?;
        }
        Ok(read)
    })
    .await?;
    broadcasts.read = all as u64;
    broadcasts.seconds = begun.elapsed().as_secs_f64();
    Ok(broadcasts)
}

/// How many broadcasts a resident has read that are what was said.
async fn read_by(resident: &Endpoint) -> Result<usize, Failure> {
    let received = resident.broadcasts_after(0, 100).await?;
    let intact = received.iter().filter(|received| {
        let body = Body::decode_in(&received.content, &["en-GB"]);
        matches!(body, Ok(Body::Letter { letter, .. }) if letter.markdown.starts_with(TEXT))
    });
    Ok(intact.count())
}

/// Counts until all are there.
async fn progress(
    bar: &ProgressBar,
    all: usize,
    mut count: impl AsyncFnMut() -> Result<usize, Failure>,
) -> Result<(), Failure> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = count().await?;
        bar.set_position(now as u64);
        if now >= all {
            bar.finish_and_clear();
            return Ok(());
        }
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            return Err(Failure::Stalled(PATIENCE.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
