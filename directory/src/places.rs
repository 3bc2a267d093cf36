//! Places of the map with their records, as lookups answer them. What is in a place
//! is named by its hash, so what was read once stays good while the place stands.

use crate::store::read;
use crate::view::{RootedMap, View};
use bytes::Bytes;
use chancery_directory_core::Prefix;
use chancery_directory_core::lookup::MAX_PLACE;
use chancery_directory_core::map::{Item, Part};
use chancery_directory_core::merkle::Hash;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::map_item::Content;
use chancery_types::{Reason, Refusal};
use moka::sync::Cache;
use prost::Message as _;
use sqlx::{Any, Pool};
use std::sync::Arc;

/// Bytes of places that are kept in memory.
const KEPT: u64 = 192 * 1024 * 1024;
/// Bytes that one lookup answers at most.
const MAX_FOUND: usize = 3 * 1024 * 1024;

/// Finds places. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Places {
    records: Pool<Any>,
    kept: Cache<(Prefix, Hash), Arc<Kept>>,
}

struct Kept {
    items: Vec<wire::MapItem>,
    bytes: usize,
}

impl Places {
    pub(crate) fn new(records: Pool<Any>) -> Self {
        let weigh = |_: &(Prefix, Hash), kept: &Arc<Kept>| u32::try_from(kept.bytes).unwrap_or(u32::MAX);
        Self { records, kept: Cache::builder().weigher(weigh).max_capacity(KEPT).build() }
    }

    /// The places that prefixes of `bits` bits name, and the entry of the root
    /// that they lead to.
    pub(crate) async fn find(
        &self,
        view: &View,
        prefixes: &[Prefix],
        bits: u32,
    ) -> Result<(u64, Vec<wire::Place>), Refusal> {
        let map = view.map().await?;
        match self.places(&map, prefixes, bits).await? {
            Some(places) => Ok((map.index, places)),
            None => {
                // Erased a moment ago; the root of now does not name it.
                let map = view.map().await?;
                let missing = || Refusal::new(Reason::Internal, "a record that stands is not there");
                Ok((map.index, self.places(&map, prefixes, bits).await?.ok_or_else(missing)?))
            }
        }
    }

    /// `None`: the body of a record is gone.
    async fn places(
        &self,
        rooted: &RootedMap,
        prefixes: &[Prefix],
        bits: u32,
    ) -> Result<Option<Vec<wire::Place>>, Refusal> {
        let (mut places, mut bytes) = (Vec::with_capacity(prefixes.len()), 0);
        for prefix in prefixes {
            let part = rooted.map.part(*prefix, bits);
            let siblings = part.siblings().iter().map(Into::into).collect();
            let Some(kept) = self.items(part, *prefix, bits).await? else { return Ok(None) };
            bytes += kept.bytes;
            if bytes > MAX_FOUND {
                return Err(too_large());
            }
            places.push(wire::Place { root: 0, siblings, items: kept.items.clone() });
        }
        Ok(Some(places))
    }

    async fn items(&self, part: Part<'_>, prefix: Prefix, bits: u32) -> Result<Option<Arc<Kept>>, Refusal> {
        let key = (prefix, part.sum().hash);
        if let Some(kept) = self.kept.get(&key) {
            return Ok(Some(kept));
        }
        if part.len() > MAX_PLACE {
            return Err(too_large());
        }
        let found = part.items();
        let wanted: Vec<_> =
            found.iter().filter(|item| item.is_under(prefix, bits)).map(Item::index).collect();
        let mut bodies = read::bodies(&self.records, &wanted).await?;
        let mut items = Vec::with_capacity(found.len());
        for item in &found {
            let content = if item.is_under(prefix, bits) {
                let Some(body) = bodies.remove(&item.index()) else { return Ok(None) };
                Content::Body(body)
            } else {
                let handle_prefix = Bytes::copy_from_slice(&item.prefix());
                let commitment = Bytes::copy_from_slice(item.commitment());
                Content::Bare(wire::BareItem { handle_prefix, commitment })
            };
            items.push(wire::MapItem {
                index: item.index(),
                sequenced_at_ms: item.sequenced_at().millis(),
                pending: item.is_pending(),
                content: Some(content),
            });
        }
        let bytes = items.iter().map(|item| item.encoded_len() + 4).sum();
        let kept = Arc::new(Kept { items, bytes });
        self.kept.insert(key, Arc::clone(&kept));
        Ok(Some(kept))
    }
}

fn too_large() -> Refusal {
    Refusal::new(
        Reason::TooLarge,
        "more than 4,096 records or 3 MiB stand there; name fewer or longer prefixes",
    )
}
