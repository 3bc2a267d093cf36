//! An agent and residents' devices for the bench of broadcasts, each with a store of its own: what a
//! home node would bring is handed on by the bench.

use super::broadcast::{CONTENT, Cells};
use crate::Failure;
use crate::local::federation::{FEDERATION, name};
use crate::local::layout::{ADMINISTRATIONS, AGENT};
use bytes::Bytes;
use chancery_directory_core::channel::Channel;
use chancery_directory_core::manifest::SignedManifest;
use chancery_directory_core::{AgentKey, SigningKey, Trust};
use chancery_proto::directory::v1 as directory;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as node;
use chancery_sdk::broadcast::chain::Chain;
use chancery_sdk::broadcast::reader::{self, Taken};
use chancery_sdk::broadcast::sender::{self, Order};
use chancery_sdk::broadcast::{audience, handover, keys, received, seat};
use chancery_sdk::credential::AgentName;
use chancery_sdk::error::EndpointError;
use chancery_sdk::store::{EndpointStore, Tx};
use chancery_sdk::{identity, peer};
use chancery_types::{Clock as _, Entropy, NodeId, SeatId, SystemClock, SystemEntropy};
use prost::Message as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Cells whose chains one transaction makes.
pub(super) const CHAINS: u32 = 1_024;
/// First row of theirs: behind all that real cells take.
const FAR: u32 = 1_024;
/// Bytes of a log's proof, for the size of what devices get: twenty hashes and a checkpoint.
const PROOF: (usize, usize) = (20, 300);

/// The channel's agent.
pub(super) struct Agent {
    pub(super) store: EndpointStore,
    pub(super) channel: Channel,
    pub(super) name: AgentName,
    pub(super) key: [u8; 32],
    signer: SigningKey,
}

/// A resident's device.
pub(super) struct Device {
    store: EndpointStore,
    pub(super) seat: SeatId,
}

/// Opens a store.
pub(super) fn open(path: &Path) -> Result<EndpointStore, Failure> {
    EndpointStore::open(path, Arc::new(SystemClock), Arc::new(SystemEntropy))
        .map_err(|error| Failure::Letter(error.to_string()))
}

/// Runs an operation on a store.
pub(super) async fn call<T: Send + 'static>(
    store: &EndpointStore,
    operation: impl FnOnce(&mut Tx<'_>) -> Result<T, EndpointError> + Send + 'static,
) -> Result<T, Failure> {
    Ok(store.call(operation).await.map_err(chancery_types::Refusal::from)?)
}

/// A seat that a resident asks for.
pub(super) fn joining(tx: &Tx<'_>, channel: &Channel) -> Result<federation::JoiningSeat, EndpointError> {
    let (_, request) = seat::request(tx, channel, None)?;
    Ok(asked(request))
}

fn asked(request: node::TakeSeatRequest) -> federation::JoiningSeat {
    federation::JoiningSeat {
        seat_id: request.seat_id,
        key_package: request.key_package,
        invitation: request.invitation,
    }
}

impl Agent {
    /// Opens the agent's store, and makes its channel unless it is there.
    pub(super) async fn open(path: &Path, cells: &Cells) -> Result<Self, Failure> {
        let store = open(path)?;
        let agent = AgentName {
            federation: FEDERATION.to_owned(),
            administration: name(ADMINISTRATIONS[0])?,
            name: name(AGENT)?,
        };
        let (home, id) = (agent.administration.clone(), agent.spiffe_id());
        let own = call(&store, move |tx| identity::create(tx, FEDERATION, &home, Some(&id))).await?;
        let entropy: &dyn Entropy = &SystemEntropy;
        let signer = SigningKey::from_bytes(&entropy.array());
        let made = cells.channel(&agent, own.alias);
        let channel = call(&store, move |tx| match audience::own_ids(tx)?.first() {
            Some(id) => audience::own(tx, id),
            None => {
                audience::publish(tx, &made.sign(&signer), &made.id)?;
                Ok(Some(made))
            }
        });
        let channel = channel.await?.ok_or(Failure::Panicked)?;
        let signer = SigningKey::from_bytes(&entropy.array());
        Ok(Self { store, channel, name: agent, key: own.credential_key, signer })
    }

    /// How many residents are in cells, and in how many.
    pub(super) async fn count(&self) -> Result<(u64, u64), Failure> {
        let channel = self.channel.id;
        call(&self.store, move |tx| audience::count(tx, &channel)).await
    }

    /// Rows of chains that its channel has at each home.
    pub(super) async fn rows(&self) -> Result<[usize; 2], Failure> {
        let channel = self.channel.id;
        let rows = call(&self.store, move |tx| keys::rows(tx, &channel)).await?;
        Ok(ADMINISTRATIONS.map(|home| rows.iter().filter(|(node, _)| node.as_str() == home).count()))
    }

    /// Answers when its file is free.
    pub(super) async fn close(self) {
        self.store.close().await;
    }

    /// Takes a list of seats, and brings all that wait into cells.
    pub(super) async fn admit(&self, node: &str, seats: Vec<federation::JoiningSeat>) -> Result<(), Failure> {
        let list = federation::SeatList {
            federation: FEDERATION.to_owned(),
            channel_id: self.channel.id.to_wire(),
            node: node.to_owned(),
            joining: seats,
            leaving: Vec::new(),
            counts: Vec::new(),
        };
        call(&self.store, move |tx| audience::ask(tx, &list)).await?;
        while call(&self.store, audience::admit).await? {}
        Ok(())
    }

    /// Takes a seat out, as if it had been given up the day before.
    pub(super) async fn remove(&self, node: &str, seat: Bytes) -> Result<(), Failure> {
        let list = federation::SeatList {
            federation: FEDERATION.to_owned(),
            channel_id: self.channel.id.to_wire(),
            node: node.to_owned(),
            leaving: vec![seat],
            ..federation::SeatList::default()
        };
        let signed = Channel { emergency: true, ..self.channel.clone() }.sign(&self.signer);
        let (id, usual) = (self.channel.id, self.channel.sign(&self.signer));
        call(&self.store, move |tx| {
            audience::ask(tx, &list)?;
            // Where emergencies are told removals do not wait for others.
            audience::publish(tx, &signed, &id)?;
            while audience::remove(tx)? {}
            audience::publish(tx, &usual, &id)
        })
        .await
    }

    /// What waits for home nodes, with each one's name: handed over.
    pub(super) async fn drain(&self) -> Result<Vec<(NodeId, node::CellItem)>, Failure> {
        let mut items = Vec::new();
        while let Some(waiting) = call(&self.store, |tx| handover::waiting(tx)).await? {
            let (node, through) = (waiting.node, waiting.through);
            items.extend(waiting.items.into_iter().map(|item| (node.clone(), item)));
            call(&self.store, move |tx| handover::done(tx, &node, through)).await?;
        }
        Ok(items)
    }

    /// Adds cells that have nothing but a chain of keys, in rows `rows` of both homes in turn.
    pub(super) async fn add_chains(&self, rows: std::ops::Range<u32>, chains: u32) -> Result<(), Failure> {
        for row in rows.clone() {
            let (channel, done) = (self.channel.id, (row - rows.start) * CHAINS);
            let some = CHAINS.min(chains.saturating_sub(done));
            let node = name(ADMINISTRATIONS[usize::from(row % 2 == 1)])?;
            let add = move |tx: &mut Tx<'_>| {
                let next = sender::wrapped(tx, &channel)? + 1;
                for cell in 0..some {
                    let chain = Chain::random(1, next, tx.entropy());
                    keys::put(tx, (&channel, &node, (FAR + row / 2) * CHAINS + cell), Some(&chain))?;
                }
                Ok(())
            };
            call(&self.store, add).await?;
        }
        Ok(())
    }

    /// Begins a broadcast, takes it for logged, and wraps it for all cells; gives what devices get of
    /// the log, and the blob.
    pub(super) async fn broadcast(&self) -> Result<(directory::LoggedManifest, Bytes), Failure> {
        let entropy: &dyn Entropy = &SystemEntropy;
        let mut content = vec![0; CONTENT];
        entropy.fill(&mut content);
        let order = Order {
            request_id: entropy.array(),
            digest: [0; 32],
            channel: self.channel.id,
            content,
            emergency: false,
            about: None,
            expires: SystemClock.now().after(Duration::from_hours(24)),
            begins: None,
        };
        call(&self.store, move |tx| sender::begin(tx, &order)).await?;
        let due = call(&self.store, |tx| sender::due(tx)).await?.ok_or(Failure::Panicked)?;
        let signed = due.manifest.sign(&self.signer);
        let logged = directory::LoggedManifest {
            manifest: Some(signed),
            path: vec![Bytes::from_static(&[1; 32]); PROOF.0],
            checkpoint: vec![b'x'; PROOF.1].into(),
            ..directory::LoggedManifest::default()
        };
        let (channel, sequence, proof) = (self.channel.id, due.manifest.sequence, logged.clone());
        call(&self.store, move |tx| {
            sender::uploaded(tx, &channel, sequence)?;
            sender::logged(tx, (&channel, sequence), &proof)
        })
        .await?;
        call(&self.store, move |tx| sender::wrap(tx, &channel, sequence)).await?;
        Ok((logged, due.blob.unwrap_or_default()))
    }
}

impl Device {
    /// A device that asks for a seat, in a new store.
    pub(super) async fn ask(
        path: &Path,
        home: &str,
        agent: &Agent,
    ) -> Result<(Self, federation::JoiningSeat), Failure> {
        let store = open(path)?;
        let (home, listed, channel) = (name(home)?, (agent.name.clone(), agent.key), agent.channel.clone());
        let ask = move |tx: &mut Tx<'_>| {
            identity::create(tx, FEDERATION, &home, None)?;
            peer::replace_agents(tx, &[listed])?;
            seat::subscribe(tx, &channel, None)?;
            let asked = seat::to_tell(tx)?;
            asked.iter().try_for_each(|(seat, _)| seat::told(tx, seat))?;
            Ok(asked)
        };
        let mut told = call(&store, ask).await?;
        let Some((seat, Some(request))) = told.pop() else { return Err(Failure::Panicked) };
        Ok((Self { store, seat }, asked(request)))
    }

    /// A device that is in a cell.
    pub(super) async fn open(path: &Path) -> Result<Self, Failure> {
        let store = open(path)?;
        let seats = call(&store, |tx| seat::read_for(tx)).await?;
        let seat = seats.first().ok_or(Failure::Panicked)?.id;
        Ok(Self { store, seat })
    }

    /// Answers when its file is free.
    pub(super) async fn close(self) {
        self.store.close().await;
    }

    /// Goes along with a change of its cell.
    pub(super) async fn step(&self, change: &federation::CellChange) -> Result<(), Failure> {
        let step = node::CellStep {
            sequence: change.sequence,
            first_broadcast: change.first_broadcast,
            commit: change.commit.clone(),
            key: change.key.clone(),
        };
        let seat = self.seat;
        match call(&self.store, move |tx| reader::step(tx, &seat, &step)).await? {
            Taken::Done => Ok(()),
            _ => Err(Failure::Letter("a device does not go along".to_owned())),
        }
    }

    /// Comes into a cell.
    pub(super) async fn join(
        &self,
        agent: &AgentName,
        change: &federation::CellChange,
    ) -> Result<(), Failure> {
        let admission = node::Admission {
            sequence: change.sequence,
            first_broadcast: change.first_broadcast,
            welcome: change.welcome.clone(),
            tree: change.tree.clone(),
            key: change.key.clone(),
        };
        let (seat, agent) = (self.seat, agent.clone());
        match call(&self.store, move |tx| reader::admitted(tx, &seat, &agent, &admission)).await? {
            Taken::Done => Ok(()),
            _ => Err(Failure::Letter("a device is in no cell".to_owned())),
        }
    }

    /// Opens a broadcast, wrap and content; how many bytes it got beside the blob. `trust`: that the log
    /// holds it is verified as well.
    pub(super) async fn read(
        &self,
        logged: Bytes,
        wrap: Bytes,
        blob: &Bytes,
        trust: Option<(&Trust, &AgentKey)>,
    ) -> Result<usize, Failure> {
        let manifest = directory::LoggedManifest::decode(logged.clone()).unwrap_or_default();
        let signed = match trust {
            Some((trust, agent)) => trust.verify_manifest(manifest, agent)?.signed,
            None => SignedManifest::try_from(manifest.manifest.unwrap_or_default())?,
        };
        let (seat, bytes) = (self.seat, blob.to_vec());
        let item = node::BroadcastItem {
            sequence: signed.manifest().sequence,
            logged_manifest: logged,
            wrap: wrap.clone(),
        };
        let size = node::ReadSeatsResponse {
            seat_id: seat.to_wire(),
            item: Some(node::read_seats_response::Item::Broadcast(item)),
        }
        .encoded_len();
        let opened = call(&self.store, move |tx| reader::take(tx, &seat, &signed, &wrap)).await?;
        let missing = call(&self.store, |tx| received::missing(tx, 1)).await?.pop();
        match (opened, missing) {
            (Taken::Broadcast, Some(missing)) => {
                call(&self.store, move |tx| received::fetched(tx, missing.position, bytes)).await?;
                Ok(size)
            }
            _ => Err(Failure::Letter("a broadcast does not open".to_owned())),
        }
    }
}
