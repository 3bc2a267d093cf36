//! Places of the map with their records, as lookups answer them. What is in a place
//! is named by its hash, so what was read once stays good while the place stands.

use crate::store::read::Items;
use crate::view::{RootedMap, View};
use bytes::{Bytes, BytesMut};
use chancery_directory_core::Prefix;
use chancery_directory_core::lookup::{MAX_PLACE, MAX_PLACE_BYTES};
use chancery_directory_core::map::{Item, Kind, Part};
use chancery_directory_core::merkle::Hash;
use chancery_kit::store::DatabasePlace;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::map_item::Content;
use chancery_types::{Reason, Refusal};
use moka::sync::Cache;
use prost::Message as _;
use sqlx::{Any, Pool};

/// Bytes of places that are kept in memory.
const KEPT: u64 = 192 * 1024 * 1024;
/// Finds places. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Places {
    items: Items,
    /// Serialised MapItems.
    kept: Cache<(Prefix, Hash), Bytes>,
}

impl Places {
    pub(crate) fn new(records: Pool<Any>, database: &DatabasePlace) -> Self {
        let weigh = |_: &(Prefix, Hash), items: &Bytes| u32::try_from(items.len()).unwrap_or(u32::MAX);
        let kept = Cache::builder().weigher(weigh).max_capacity(KEPT).build();
        Self { items: Items::new(records, database), kept }
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
            let Some(items) = self.items(rooted, part, *prefix, bits).await? else { return Ok(None) };
            bytes += items.len();
            if bytes > MAX_PLACE_BYTES {
                return Err(too_large());
            }
            places.push(wire::Place { root: 0, siblings, items });
        }
        Ok(Some(places))
    }

    async fn items(
        &self,
        rooted: &RootedMap,
        part: Part<'_>,
        prefix: Prefix,
        bits: u32,
    ) -> Result<Option<Bytes>, Refusal> {
        let key = (prefix, part.sum().hash);
        if let Some(items) = self.kept.get(&key) {
            return Ok(Some(items));
        }
        if part.len() > MAX_PLACE {
            return Err(too_large());
        }
        let found = part.items();
        // Those under the prefix stand side by side: whole, between others' without records.
        let shown = |item: &Item| match item.kind() {
            _ if !item.is_under(prefix, bits) => Shown::Bare,
            Kind::Channel => Shown::Channel,
            Kind::Record | Kind::Pending => Shown::Record,
        };
        let mut items = BytesMut::new();
        for part in found.chunk_by(|a, b| shown(a) == shown(b)) {
            let some = match part.first().map(shown) {
                Some(Shown::Record) => {
                    let wanted: Vec<_> = part.iter().map(Item::index).collect();
                    let Some(whole) = self.items.of(&wanted).await? else { return Ok(None) };
                    whole
                }
                Some(Shown::Channel) => encoded(part.iter().map(|item| channel(item, rooted)).collect()),
                Some(Shown::Bare) | None => encoded(part.iter().map(bare).collect()),
            };
            items.extend_from_slice(&some);
        }
        let items = items.freeze();
        self.kept.insert(key, items.clone());
        Ok(Some(items))
    }
}

/// What an item comes with.
#[derive(PartialEq, Eq)]
enum Shown {
    Record,
    Channel,
    Bare,
}

fn encoded(items: Vec<wire::MapItem>) -> Bytes {
    wire::MapItems { items }.encode_to_vec().into()
}

/// Whoever is shown a channel's item under the prefix gets what stands for it.
fn channel(item: &Item, rooted: &RootedMap) -> wire::MapItem {
    let mut heads = rooted.channels.heads();
    let head = heads.find(|head| head.entry.0 == item.index());
    wire::MapItem { content: head.map(|head| Content::Channel(head.to_wire())), ..bare(item) }
}

fn bare(item: &Item) -> wire::MapItem {
    let handle_prefix = Bytes::copy_from_slice(&item.prefix());
    let commitment = Bytes::copy_from_slice(item.commitment());
    wire::MapItem {
        index: item.index(),
        sequenced_at_ms: item.sequenced_at().millis(),
        pending: item.kind() == Kind::Pending,
        content: Some(Content::Bare(wire::BareItem {
            handle_prefix,
            commitment,
            channel: item.kind() == Kind::Channel,
        })),
    }
}

fn too_large() -> Refusal {
    Refusal::new(
        Reason::TooLarge,
        "more than 4,096 records or 3 MiB stand there; name fewer or longer prefixes",
    )
}
