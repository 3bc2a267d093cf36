//! What resolving costs: handles of a whole mailing, in the order of the map, from a
//! mirror in a process of its own; every place and record verified as senders do.

use super::records::{Founded, Known, Process, Role};
use super::round;
use crate::Failure;
use chancery_directory_core::attestation::SchemeName;
use chancery_directory_core::{FederationState, Prefix, Trust};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Clock as _, Scheme, SystemClock};
use futures::StreamExt as _;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Places in one lookup.
const PLACES: usize = 16;
/// Lookups under way at once.
const UNDER_WAY: usize = 4;
/// How often the mirror is asked whether it has everything.
const ASK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Serialize)]
pub(super) struct Figures {
    /// Verified and opened, mirror and sender sharing the machine.
    resolve_mirror_ids_per_s: f64,
    /// Entries that the mirror fetched, replayed and stored.
    mirror_entries_per_s: f64,
    mirror_rss_mib: f64,
}

/// For that long, from a mirror that has everything.
pub(super) async fn measure(
    founded: &Founded,
    mut known: Vec<Known>,
    bits: u32,
    time: Duration,
) -> Result<Figures, Failure> {
    let mut directory = Process::start(founded, Role::Directory).await?;
    let statements = directory.client.clone().list_statements(wire::ListStatementsRequest { start: 0 }).await;
    let statements = statements.map_err(Failure::call)?.into_inner();
    let (checkpoint, state) = founded.trust.verify_statements(statements)?;
    let begun = Instant::now();
    let mut mirror = Process::start(founded, Role::Mirror).await?;
    loop {
        let shown = mirror.client.clone().fetch_checkpoint(wire::FetchCheckpointRequest {}).await;
        let shown = shown.map_err(Failure::call)?.into_inner().checkpoint;
        // Before it has everything it shows nothing that the directory signed.
        if founded.trust.verify_checkpoint(&shown).is_ok_and(|shown| shown.size() >= checkpoint.size()) {
            break;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    let mirrored = checkpoint.size() as f64 / begun.elapsed().as_secs_f64();
    directory.kill()?;

    known.sort_unstable_by_key(|(handle, _)| *handle);
    let mut places: Vec<(Prefix, Vec<Known>)> = Vec::new();
    for known in known {
        let prefix = Prefix::of(&known.0, bits);
        match places.last_mut() {
            Some((last, handles)) if *last == prefix => handles.push(known),
            _ => places.push((prefix, vec![known])),
        }
    }
    let (trust, state) = (Arc::new(founded.trust.clone()), Arc::new(state));
    let begun = Instant::now();
    let mut lookups = futures::stream::iter(places.chunks(PLACES).map(<[_]>::to_vec))
        .take_while(|_| std::future::ready(begun.elapsed() < time))
        .map(|wanted| {
            let (mut client, trust, state) = (mirror.client.clone(), Arc::clone(&trust), Arc::clone(&state));
            async move {
                let prefixes = wanted.iter().map(|(prefix, _)| prefix.to_bytes().to_vec().into()).collect();
                let answer = client.lookup(wire::LookupRequest { prefixes }).await.map_err(Failure::call)?;
                let verify = move || verify(&trust, &state, &wanted, answer.into_inner(), bits);
                tokio::task::spawn_blocking(verify).await.map_err(|_| Failure::Panicked)?
            }
        })
        .buffer_unordered(UNDER_WAY);
    let mut resolved = 0;
    while let Some(count) = lookups.next().await {
        resolved += count?;
    }
    let spent = begun.elapsed().as_secs_f64();
    drop(lookups);
    mirror.kill()?;
    Ok(Figures {
        resolve_mirror_ids_per_s: round(resolved as f64 / spent),
        mirror_entries_per_s: round(mirrored),
        mirror_rss_mib: round(mirror.rss_mib),
    })
}

/// As an endpoint does; gives how many were resolved.
fn verify(
    trust: &Trust,
    state: &FederationState,
    wanted: &[(Prefix, Vec<Known>)],
    answer: wire::LookupResponse,
    bits: u32,
) -> Result<usize, Failure> {
    let prefixes: Vec<_> = wanted.iter().map(|(prefix, _)| *prefix).collect();
    let lookup = trust.verify_lookup(answer, &prefixes, bits, SystemClock.now())?;
    let scheme = SchemeName::from(Scheme::BeNn);
    let known: Vec<_> = wanted.iter().flat_map(|(_, handles)| handles).collect();
    let named: Vec<_> = known.iter().map(|(handle, _)| (*handle, scheme.clone())).collect();
    for (record, (_, key)) in lookup.find_all(&named, state).into_iter().zip(&known) {
        record?.ok_or(Failure::Panicked)?.open(key)?;
    }
    Ok(known.len())
}
