//! `chancery.node.v1.AccountService`.

use super::Rooms;
use super::session::{self, Session};
use crate::mesh::not_a_member;
use crate::store::account::{self, NewDevice};
use crate::store::{mailbox, moves};
use bytes::Bytes;
use chancery_kit::serve::unary;
use chancery_node_core::parcel::limit;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::account_service_server::AccountService;
use chancery_types::{AccountId, Alias, DeviceId, GroupId, NodeId, Reason, Refusal};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(super) struct Accounts(pub(super) Arc<Rooms>);

#[tonic::async_trait]
impl AccountService for Accounts {
    async fn open_account(
        &self,
        request: Request<wire::OpenAccountRequest>,
    ) -> Result<Response<wire::OpenAccountResponse>, Status> {
        unary(self.open(request)).await
    }

    async fn authenticate(
        &self,
        request: Request<wire::AuthenticateRequest>,
    ) -> Result<Response<wire::AuthenticateResponse>, Status> {
        unary(self.bind(request)).await
    }

    async fn add_device(
        &self,
        request: Request<wire::AddDeviceRequest>,
    ) -> Result<Response<wire::AddDeviceResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let device = new_device(request.into_inner().device)?;
            let account = session.account;
            self.0
                .store
                .change("node.device.add", move |tx| Box::pin(account::add_device(tx, account, device)))
                .await??;
            Ok(wire::AddDeviceResponse {})
        })
        .await
    }

    async fn remove_device(
        &self,
        request: Request<wire::RemoveDeviceRequest>,
    ) -> Result<Response<wire::RemoveDeviceResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let device = DeviceId::try_from(&request.into_inner().device_id)?;
            let account = session.account;
            self.0
                .store
                .change("node.device.remove", move |tx| Box::pin(account::remove_device(tx, account, device)))
                .await??;
            self.0.sessions.end(&device);
            Ok(wire::RemoveDeviceResponse {})
        })
        .await
    }

    async fn add_alias(
        &self,
        request: Request<wire::AddAliasRequest>,
    ) -> Result<Response<wire::AddAliasResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let alias = Alias::try_from(&request.into_inner().alias)?;
            let account = session.account;
            self.0
                .store
                .change("node.alias.add", move |tx| Box::pin(account::add_alias(tx, account, alias)))
                .await??;
            session.add_alias(alias);
            Ok(wire::AddAliasResponse {})
        })
        .await
    }

    async fn list_routes(
        &self,
        request: Request<wire::ListRoutesRequest>,
    ) -> Result<Response<wire::ListRoutesResponse>, Status> {
        unary(async {
            let (_, alias) = own_alias(&request, &request.get_ref().alias)?;
            let after = request.get_ref().after.clone();
            let (store, here) = (&self.0.store, self.0.mesh.here());
            let routes = moves::routes(store, here, alias, &after).await.map_err(internal)?;
            let route = |(group, hub): (GroupId, NodeId)| wire::Route {
                group_id: group.to_wire(),
                hub: hub.to_string(),
            };
            Ok(wire::ListRoutesResponse { routes: routes.into_iter().map(route).collect() })
        })
        .await
    }

    async fn add_routes(
        &self,
        request: Request<wire::AddRoutesRequest>,
    ) -> Result<Response<wire::AddRoutesResponse>, Status> {
        unary(async {
            let (_, alias) = own_alias(&request, &request.get_ref().alias)?;
            let routes = request.into_inner().routes;
            limit("routes", routes.len(), moves::ROUTES_AT_ONCE)?;
            let route = |route: &wire::Route| {
                Ok::<_, Refusal>((GroupId::try_from(&route.group_id)?, route.hub.parse::<NodeId>()?))
            };
            let routes = Arc::new(routes.iter().map(route).collect::<Result<Vec<_>, _>>()?);
            self.0
                .store
                .change("node.routes.add", move |tx| {
                    let routes = Arc::clone(&routes);
                    Box::pin(async move { moves::add_routes(tx, alias, &routes).await })
                })
                .await??;
            Ok(wire::AddRoutesResponse {})
        })
        .await
    }

    async fn leave_alias(
        &self,
        request: Request<wire::LeaveAliasRequest>,
    ) -> Result<Response<wire::LeaveAliasResponse>, Status> {
        unary(async {
            let (session, alias) = own_alias(&request, &request.get_ref().alias)?;
            let message = request.into_inner();
            let to = message.node.parse::<NodeId>()?;
            let state = self.0.mesh.state();
            if state.member(&to).is_none() {
                return Err(not_a_member(&state));
            }
            let device = session.device;
            let left = self
                .0
                .store
                .change("node.alias.leave", move |tx| {
                    let to = to.clone();
                    Box::pin(async move { moves::leave(tx, (alias, device), &to, message.routes).await })
                })
                .await??;
            let moves::Left { pending_hubs, last_position } = left;
            Ok(wire::LeaveAliasResponse { pending_hubs, last_position })
        })
        .await
    }
}

impl Accounts {
    async fn open(
        &self,
        request: Request<wire::OpenAccountRequest>,
    ) -> Result<wire::OpenAccountResponse, Refusal> {
        let connection = session::connection(&request)?.clone();
        let message = request.into_inner();
        let device = new_device(message.device)?;
        let alias = Alias::try_from(&message.alias)?;
        session::prove(&self.0, &connection, device.device_id, &device.auth_key, &message.signature)?;
        self.0.quotas.open_account(connection.remote.ip())?;
        let agent = session::agent(&self.0, &connection)?;
        let fresh = AccountId::random(self.0.store.entropy());
        let account = self
            .0
            .store
            .change("node.account.open", move |tx| {
                let agent = agent.clone();
                Box::pin(async move { account::open(tx, fresh, agent.as_deref(), device, alias).await })
            })
            .await??;
        self.session(&connection, device.device_id, account).await?;
        Ok(wire::OpenAccountResponse { node: self.0.mesh.here().to_string() })
    }

    async fn bind(
        &self,
        request: Request<wire::AuthenticateRequest>,
    ) -> Result<wire::AuthenticateResponse, Refusal> {
        let connection = session::connection(&request)?.clone();
        let message = request.into_inner();
        let device = DeviceId::try_from(&message.device_id)?;
        let row = account::device(&self.0.store, device).await.map_err(internal)?;
        let row = row
            .ok_or_else(|| Refusal::new(Reason::DeviceUnknown, "open an account or link the device first"))?;
        session::prove(&self.0, &connection, device, &row.auth_key, &message.signature)?;
        if row.agent != session::agent(&self.0, &connection)? {
            return Err(Refusal::new(Reason::WrongIdentity, "the account belongs to another certificate"));
        }
        let aliases = self.session(&connection, device, row.account_id).await?;
        let acknowledged = mailbox::acknowledged(&self.0.store, device, &aliases).await.map_err(internal)?;
        Ok(wire::AuthenticateResponse {
            node: self.0.mesh.here().to_string(),
            aliases: aliases.iter().map(Alias::to_wire).collect(),
            incarnation: self.0.store.incarnation().to_wire(),
            store_count: row.store_count,
            acknowledged,
        })
    }

    async fn session(
        &self,
        connection: &chancery_kit::tls::ConnectionInfo,
        device: DeviceId,
        account: AccountId,
    ) -> Result<Vec<Alias>, Refusal> {
        let aliases = account::aliases(&self.0.store, account).await.map_err(internal)?;
        // The certificate is the account's.
        let is_agent = session::agent(&self.0, connection)?.is_some();
        session::bind(&self.0, connection, Session::new(device, account, is_agent, &aliases))?;
        Ok(aliases)
    }
}

/// The calling device, and an alias of its account.
fn own_alias<T>(request: &Request<T>, alias: &Bytes) -> Result<(Arc<Session>, Alias), Refusal> {
    let session = session::device(request)?;
    let alias = Alias::try_from(alias)?;
    session.own(&alias)?;
    Ok((session, alias))
}

fn new_device(device: Option<wire::Device>) -> Result<NewDevice, Refusal> {
    let device = device.ok_or_else(|| Refusal::field("device is not set"))?;
    let auth_key = <[u8; 32]>::try_from(device.auth_key.as_ref())
        .ok()
        .filter(|key| ed25519_dalek::VerifyingKey::from_bytes(key).is_ok_and(|key| !key.is_weak()))
        .ok_or_else(|| Refusal::field("auth_key is no Ed25519 key"))?;
    Ok(NewDevice { device_id: (&device.device_id).try_into()?, auth_key })
}

pub(super) fn internal(error: sqlx::Error) -> Refusal {
    chancery_kit::store::StoreError::from(error).into()
}
