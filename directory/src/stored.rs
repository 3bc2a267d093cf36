//! What a store holds of a log, read at the start: what governs, channels, and the map.

use crate::store::read;
use chancery_directory_core::ceremony::conclusion::Conclusion;
use chancery_directory_core::channels::Channels;
use chancery_directory_core::entry::Event;
use chancery_directory_core::map::Map;
use chancery_directory_core::replay::{Replay, Standing};
use chancery_directory_core::{FederationState, GovernanceKeys, governance};
use chancery_directory_log::LogError;
use chancery_kit::store::DatabasePlace;
use sqlx::{Any, Pool};

/// The log as replayed when its last entry was stored; `next` is the one after it.
pub(crate) async fn replay(
    (pool, database): (&Pool<Any>, &DatabasePlace),
    federation: &str,
    governors: &GovernanceKeys,
    next: u64,
) -> Result<Replay, LogError> {
    let mut state = FederationState::default();
    for (index, leaf) in read::statements(pool).await? {
        let entry = leaf.entry()?;
        match entry.event {
            Event::Statement(signed) => {
                let verified = governance::verify(&signed, federation, governors)?;
                state.apply(verified, index, entry.sequenced_at);
            }
            Event::Ceremony(concluded) => {
                state.conclude(Conclusion::verify(&concluded, federation, governors)?, index);
            }
            Event::RecordChange(_)
            | Event::EvaluationTotals(_)
            | Event::MapRoot(_)
            | Event::Channel(_)
            | Event::Manifest(_) => {
                return Err(LogError::Damaged("an entry kept as a statement is none"));
            }
        }
    }
    let channels = channels(pool).await?;
    let (last, items) = (read::last_sequenced_at(pool).await?, read::items(pool, database).await?);
    let map = tokio::task::spawn_blocking(move || {
        let mut map = Map::from_items(items)?;
        map.root();
        Ok::<_, LogError>(map)
    });
    let map = map.await.map_err(|_| LogError::Damaged("reading the map was interrupted"))??;
    Ok(Replay::resumed(federation, governors.clone(), Standing { state, channels, map }, next, last))
}

/// What stands for channels. The rules were kept when it was logged.
async fn channels(pool: &Pool<Any>) -> Result<Channels, LogError> {
    let mut channels = Channels::default();
    for [version, head] in read::channels(pool).await? {
        for (index, leaf) in [version, head] {
            let entry = leaf.entry()?;
            match entry.event {
                Event::Channel(signed) => {
                    channels.apply(signed.try_into()?, index, entry.sequenced_at);
                }
                Event::Manifest(signed) => {
                    channels.apply_manifest(&signed.try_into()?, index, entry.sequenced_at)?;
                }
                _ => return Err(LogError::Damaged("an entry kept as a channel's is none")),
            }
        }
    }
    Ok(channels)
}
