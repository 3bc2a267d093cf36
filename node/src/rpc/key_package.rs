//! `chancery.node.v1.KeyPackageService`, and taking KeyPackages for whoever asks.

use super::{Rooms, session};
use crate::mesh::peer_call;
use crate::store::account;
use crate::store::key_package::{self, Package, Published};
use chancery_kit::serve::unary;
use chancery_node_core::key_package::cipher_suite;
use chancery_node_core::parcel::limit;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::key_package_service_server::KeyPackageService;
use chancery_types::{Alias, NodeId, Refusal};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Most addresses of one call.
pub(super) const MAX_ADDRESSES: usize = 128;
const MAX_SUITES: usize = 8;
const MAX_PUBLISHED: usize = 256;

pub(super) struct KeyPackages(pub(super) Arc<Rooms>);

#[tonic::async_trait]
impl KeyPackageService for KeyPackages {
    async fn publish_key_packages(
        &self,
        request: Request<wire::PublishKeyPackagesRequest>,
    ) -> Result<Response<wire::PublishKeyPackagesResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let message = request.into_inner();
            let alias = Alias::try_from(&message.alias)?;
            session.own(&alias)?;
            let one_time = packages("one_time", message.one_time, MAX_PUBLISHED)?;
            let last_resort = packages("last_resort", message.last_resort, MAX_SUITES)?;
            let (device, store_count) = (session.device, message.store_count);
            let published = Arc::new(Published { one_time, last_resort, replace: message.replace });
            let stock = self
                .0
                .store
                .change("node.key_package.publish", move |tx| {
                    let published = Arc::clone(&published);
                    Box::pin(async move {
                        account::raise_counts(tx, &[(device, store_count)]).await?;
                        key_package::publish(tx, alias, device, &published).await
                    })
                })
                .await??;
            Ok(wire::PublishKeyPackagesResponse { stock })
        })
        .await
    }

    async fn take_key_packages(
        &self,
        request: Request<wire::TakeKeyPackagesRequest>,
    ) -> Result<Response<wire::TakeKeyPackagesResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let message = request.into_inner();
            limit("addresses", message.addresses.len(), MAX_ADDRESSES)?;
            self.0.quotas.take_key_packages(&session.account, message.addresses.len())?;
            let suites = suites(&message.cipher_suites)?;
            let mut by_node: BTreeMap<NodeId, Vec<(usize, Alias)>> = BTreeMap::new();
            for (index, address) in message.addresses.iter().enumerate() {
                let alias = Alias::try_from(&address.alias)?;
                by_node.entry(address.node.parse()?).or_default().push((index, alias));
            }
            let calls = by_node.into_iter().map(|(node, wanted)| self.take_from(node, wanted, &suites));
            let mut aliases = vec![federation::AliasKeyPackages::default(); message.addresses.len()];
            for (index, found) in futures::future::join_all(calls).await.into_iter().flatten() {
                if let Some(place) = aliases.get_mut(index) {
                    *place = found;
                }
            }
            Ok(wire::TakeKeyPackagesResponse { aliases })
        })
        .await
    }
}

impl KeyPackages {
    /// KeyPackages of one node's aliases; where that node does not answer as
    /// it should, each alias gets the reason.
    async fn take_from(
        &self,
        node: NodeId,
        wanted: Vec<(usize, Alias)>,
        suites: &[u16],
    ) -> Vec<(usize, federation::AliasKeyPackages)> {
        let aliases: Vec<Alias> = wanted.iter().map(|(_, alias)| *alias).collect();
        let found = if node == *self.0.mesh.here() {
            take_here(&self.0, aliases.clone(), suites.to_vec()).await
        } else {
            self.take_there(&node, &aliases, suites).await
        };
        let found = found.unwrap_or_else(|refusal| {
            let none = |alias: &Alias| federation::AliasKeyPackages {
                alias: alias.to_wire(),
                key_packages: Vec::new(),
                reason: refusal.reason.as_str().to_owned(),
            };
            aliases.iter().map(none).collect()
        });
        wanted.into_iter().map(|(index, _)| index).zip(found).collect()
    }

    async fn take_there(
        &self,
        node: &NodeId,
        aliases: &[Alias],
        suites: &[u16],
    ) -> Result<Vec<federation::AliasKeyPackages>, Refusal> {
        let request = federation::FetchKeyPackagesRequest {
            aliases: aliases.iter().map(Alias::to_wire).collect(),
            cipher_suites: suites.iter().map(|suite| u32::from(*suite)).collect(),
        };
        let mut client = self.0.mesh.peer(node).await?;
        let response = peer_call(client.fetch_key_packages(request)).await?;
        if response.aliases.len() != aliases.len() {
            return Err(Refusal::new(
                chancery_types::Reason::PeerMisbehaved,
                "the member's node answered for other aliases",
            ));
        }
        Ok(response.aliases)
    }
}

/// Takes KeyPackages of aliases that live here.
pub(super) async fn take_here(
    rooms: &Rooms,
    aliases: Vec<Alias>,
    suites: Vec<u16>,
) -> Result<Vec<federation::AliasKeyPackages>, Refusal> {
    let input = Arc::new((aliases, suites));
    rooms
        .store
        .change("node.key_package.take", move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let mut taken = Vec::with_capacity(input.0.len());
                for alias in &input.0 {
                    taken.push(key_package::take(tx, *alias, &input.1).await?);
                }
                Ok(taken)
            })
        })
        .await
}

/// Cipher suites of a request.
pub(super) fn suites(suites: &[u32]) -> Result<Vec<u16>, Refusal> {
    limit("cipher_suites", suites.len(), MAX_SUITES)?;
    if suites.is_empty() {
        return Err(Refusal::field("cipher_suites is empty"));
    }
    let suite =
        |suite: &u32| u16::try_from(*suite).map_err(|_| Refusal::field("no cipher suite is above 65535"));
    suites.iter().map(suite).collect()
}

fn packages(what: &'static str, messages: Vec<bytes::Bytes>, most: usize) -> Result<Vec<Package>, Refusal> {
    limit(what, messages.len(), most)?;
    messages.into_iter().map(|message| Ok((cipher_suite(&message)?, message))).collect()
}
