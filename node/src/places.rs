//! Places of the directory's map that this node's endpoints asked for. What comes from
//! a mirror or the directory is verified before it is kept. A place that was fetched a
//! moment ago is handed out again, and while the directory cannot be reached every one
//! that is kept: endpoints verify it as well, and judge how old it is.

use crate::mesh::Mesh;
use bytes::Bytes;
use chancery_directory_core::Prefix;
use chancery_directory_core::lookup::{ALARMING_AGE, MAX_PREFIXES};
use chancery_directory_log::directory_call;
use chancery_proto::directory::v1 as wire;
use chancery_types::reason::Code;
use chancery_types::{Clock, Reason, Refusal, Timestamp};
use moka::sync::Cache;
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of places that are kept.
const KEPT: u64 = 64 * 1024 * 1024;
/// How long a place is handed out without asking again: roots are as far apart.
const FRESH: Duration = Duration::from_secs(5);

/// What is kept. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Places {
    /// By length of the prefix, and prefix.
    kept: Cache<(u32, Bytes), Arc<Kept>>,
    clock: Arc<dyn Clock>,
}

struct Kept {
    place: wire::Place,
    root: Arc<wire::LoggedRoot>,
    /// Entry of the root.
    index: u64,
    fetched_at: Timestamp,
}

impl Places {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let weigh = |_: &(u32, Bytes), kept: &Arc<Kept>| {
            u32::try_from(kept.place.encoded_len()).unwrap_or(u32::MAX).saturating_add(1_024)
        };
        Self { kept: Cache::builder().weigher(weigh).max_capacity(KEPT).build(), clock }
    }

    /// Answers a lookup: what is fresh and covers entry `after` from here, the
    /// rest from the directory; if that does not answer, from here as well.
    pub(crate) async fn find(
        &self,
        mesh: &Mesh,
        request: wire::LookupRequest,
        after: u64,
    ) -> Result<wire::LookupResponse, Refusal> {
        if request.prefixes.len() > MAX_PREFIXES {
            return Err(Refusal::field("a lookup has 1 to 256 prefixes"));
        }
        let bits = mesh.state().lookup_prefix_bits();
        let now = self.clock.now();
        let mut found: Vec<Option<Arc<Kept>>> = Vec::with_capacity(request.prefixes.len());
        let mut missing = Vec::new();
        for prefix in &request.prefixes {
            let kept = self.kept.get(&(bits, prefix.clone()));
            let good = kept.filter(|kept| now.since(kept.fetched_at) < FRESH && kept.index > after);
            if good.is_none() {
                missing.push(prefix.clone());
            }
            found.push(good);
        }
        let mut fetched = if missing.is_empty() && !request.prefixes.is_empty() {
            Vec::new()
        } else {
            self.fetch(mesh, missing, (bits, after)).await?
        }
        .into_iter();
        let mut answer = wire::LookupResponse::default();
        let mut roots: Vec<Arc<wire::LoggedRoot>> = Vec::new();
        for kept in found {
            let Some(kept) = kept.or_else(|| fetched.next()) else { break };
            let at = roots.iter().position(|root| Arc::ptr_eq(root, &kept.root) || **root == *kept.root);
            let at = at.unwrap_or_else(|| {
                roots.push(Arc::clone(&kept.root));
                roots.len() - 1
            });
            let root = u32::try_from(at).unwrap_or(u32::MAX);
            answer.places.push(wire::Place { root, ..kept.place.clone() });
        }
        answer.roots = roots.iter().map(|root| (**root).clone()).collect();
        Ok(answer)
    }

    async fn fetch(
        &self,
        mesh: &Mesh,
        prefixes: Vec<Bytes>,
        (bits, after): (u32, u64),
    ) -> Result<Vec<Arc<Kept>>, Refusal> {
        let (mut found, mut last): (Option<Found>, _) = (None, None);
        for mut server in mesh.lookups() {
            let request = wire::LookupRequest { prefixes: prefixes.clone() };
            let answer = match directory_call(server.lookup(request)).await {
                Ok(response) => self.verify(mesh, response, &prefixes, bits).await,
                Err(refusal) => Err(refusal),
            };
            match answer {
                Ok(answer) => {
                    let is_good = answer.oldest > after && answer.age <= ALARMING_AGE;
                    if found.as_ref().is_none_or(|found| found.oldest < answer.oldest) {
                        found = Some(answer);
                    }
                    // A mirror may lag: then the directory is asked as well.
                    if is_good {
                        break;
                    }
                }
                Err(refusal) => last = Some(refusal),
            }
        }
        let Some(Found { response, .. }) = found else {
            let unanswered = || Refusal::new(Reason::DirectoryUnreachable, "nobody answers lookups");
            let refusal = last.unwrap_or_else(unanswered);
            if refusal.reason.code() != Code::Unavailable {
                return Err(refusal);
            }
            let kept = prefixes.iter().map(|prefix| self.kept.get(&(bits, prefix.clone())));
            return kept.collect::<Option<Vec<_>>>().ok_or(refusal);
        };
        let roots: Vec<_> = response.roots.into_iter().map(Arc::new).collect();
        let mut fetched = Vec::with_capacity(prefixes.len());
        for (prefix, place) in prefixes.into_iter().zip(response.places) {
            let root = roots.get(place.root as usize);
            let root = Arc::clone(root.ok_or_else(|| misbehaved("a place of the map names no root"))?);
            let index = index_of(&root);
            let kept = Arc::new(Kept { place, root, index, fetched_at: self.clock.now() });
            self.kept.insert((bits, prefix), Arc::clone(&kept));
            fetched.push(kept);
        }
        Ok(fetched)
    }

    async fn verify(
        &self,
        mesh: &Mesh,
        response: wire::LookupResponse,
        prefixes: &[Bytes],
        bits: u32,
    ) -> Result<Found, Refusal> {
        let named = prefixes.iter().map(|prefix| Prefix::from_wire(prefix, bits));
        let named = named.collect::<Result<Vec<_>, _>>()?;
        let (trust, now, answer) = (mesh.log().trust().clone(), self.clock.now(), response.clone());
        let verify = move || trust.verify_lookup(answer, &named, bits, now);
        let verified = tokio::task::spawn_blocking(verify).await;
        let verified = verified.map_err(|_| Refusal::new(Reason::Internal, "a check was interrupted"))?;
        match verified {
            Ok(verified) => {
                let oldest = verified.roots().iter().map(|root| root.index).min().unwrap_or(0);
                Ok(Found { response, oldest, age: verified.age(now) })
            }
            Err(error) => {
                tracing::warn!(%error, "node.lookup.wrong");
                // Perhaps the federation settled on prefixes of another length.
                mesh.ask_for_unknown().await;
                Err(error.into())
            }
        }
    }
}

/// An answer that holds.
struct Found {
    response: wire::LookupResponse,
    /// Entry of its oldest root.
    oldest: u64,
    /// How old that is.
    age: Duration,
}

/// Entry of a root.
fn index_of(root: &wire::LoggedRoot) -> u64 {
    let inclusion = root.entry.as_ref().and_then(|entry| entry.inclusion.as_ref());
    inclusion.map_or(0, |inclusion| inclusion.index)
}

fn misbehaved(message: &'static str) -> Refusal {
    Refusal::new(Reason::DirectoryMisbehaved, message)
}
