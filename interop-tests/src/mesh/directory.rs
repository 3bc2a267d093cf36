//! The mesh's directory: served, copied, stopped, mirrored, told what is decided.

use super::{FEDERATION, Mesh, PREFIX_BITS, Place};
use chancery_directory::{DirectoryConfig, MirrorConfig, governance};
use chancery_directory_core::statement::Decision;
use chancery_directory_core::{FederationState, GovernanceKeys, Prefix};
use chancery_kit::store::DatabasePlace;
use chancery_kit::tls::connect;
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::Handle;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

impl Mesh {
    pub(super) async fn serve_directory(&mut self) {
        let place = Place::free().await;
        self.directory_address.clone_from(&place.address);
        self.serve_directory_from("directory", place).await;
    }

    async fn serve_directory_from(&mut self, folder: &str, place: Place) {
        let governance = GovernanceKeys::from_bundle(&self.bundle).unwrap();
        let mut config = DirectoryConfig::embedded(FEDERATION.to_owned(), governance, self.path(folder));
        // A root with each batch, so that what is published is found at once.
        config.root_interval = Duration::ZERO;
        let credentials = self.certify(&Party::Directory).await;
        let (entropy, stop) = (Arc::clone(&self.entropy), self.shutdown.child_token());
        let (stopped, entrance) = (stop.clone(), self.entrance("directory", place));
        let serving = tokio::spawn(async move {
            let serving = chancery_directory::serve(config, entrance, credentials, entropy, stopped);
            serving.await.unwrap();
        });
        self.directory = Some((stop, serving));
    }

    /// A whole copy of the running directory, as an operator's backup makes it.
    pub fn back_up_directory(&self, name: &str) {
        let (from, to) = (self.path("directory"), self.path(name));
        std::fs::create_dir(&to).unwrap();
        for key in ["checkpoint.key", "operation.key"] {
            std::fs::copy(from.join(key), to.join(key)).unwrap();
        }
        let database = rusqlite::Connection::open(from.join("directory.sqlite")).unwrap();
        let copy = to.join("directory.sqlite");
        database.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    }

    /// Starts a mirror of the directory, for nodes that are started later.
    pub async fn start_mirror(&mut self) {
        let place = Place::free().await;
        self.mirror_address = Some(place.address.clone());
        let folder = self.path("mirror");
        let config = MirrorConfig {
            trust: self.trust.clone(),
            directory: self.directory_address.clone(),
            database: DatabasePlace::File(folder.join("mirror.sqlite")),
            folder,
        };
        let credentials = self.certify(&Party::Directory).await;
        let (entropy, stop) = (Arc::clone(&self.entropy), self.shutdown.clone());
        let entrance = self.entrance("mirror", place);
        tokio::spawn(async move {
            let serving = chancery_directory::serve_mirror(config, entrance, credentials, entropy, stop);
            serving.await.unwrap();
        });
    }

    /// Whether the mirror shows a record of the handle to the node `federal`.
    pub async fn mirror_shows(&self, handle: &Handle) -> bool {
        let address = self.mirror_address.as_ref().unwrap();
        let credentials = Arc::clone(&self.nodes["federal"].credentials);
        let (channel, _) = connect(address, Party::Directory, credentials).await.unwrap();
        let prefix = Prefix::of(handle, PREFIX_BITS);
        let prefixes = vec![prefix.to_bytes().to_vec().into()];
        let answer = DirectoryServiceClient::new(channel).lookup(wire::LookupRequest { prefixes }).await;
        answer.is_ok_and(|answer| {
            let (answer, now) = (answer.into_inner(), self.clock.now());
            let lookup = self.trust.verify_lookup(answer, &[prefix], PREFIX_BITS, now).unwrap();
            lookup.holds(handle)
        })
    }

    /// Ends the directory.
    pub async fn stop_directory(&mut self) {
        let (stop, served) = self.directory.take().unwrap();
        stop.cancel();
        served.await.unwrap();
    }

    /// Ends the directory and starts the copy of that name in its place.
    pub async fn restore_directory(&mut self, name: &str) {
        self.stop_directory().await;
        self.start_directory(name).await;
    }

    /// Starts the directory in that folder, where the one that ended was: its own is
    /// `directory`.
    pub async fn start_directory(&mut self, name: &str) {
        let place = Place::of(TcpListener::bind(&self.directory_address).await.unwrap());
        self.serve_directory_from(name, place).await;
    }

    /// Entries of the log.
    pub async fn log_size(&self) -> u64 {
        let (channel, _) =
            connect(&self.directory_address, Party::Directory, self.anonymous()).await.unwrap();
        let request = wire::FetchCheckpointRequest {};
        let answer = DirectoryServiceClient::new(channel).fetch_checkpoint(request).await.unwrap();
        self.trust.verify_checkpoint(&answer.into_inner().checkpoint).unwrap().size()
    }

    /// Has a decision of governance logged.
    pub async fn decide(&self, decision: Decision) {
        let statement = governance::decide(FEDERATION, decision, &[&self.governance], &*self.entropy);
        let request = wire::SubmitStatementRequest { statement: Some(statement) };
        let (channel, _) =
            connect(&self.directory_address, Party::Directory, self.anonymous()).await.unwrap();
        DirectoryServiceClient::new(channel).submit_statement(request).await.unwrap();
    }

    /// What the log says now.
    pub async fn state(&self) -> FederationState {
        let (channel, _) =
            connect(&self.directory_address, Party::Directory, self.anonymous()).await.unwrap();
        let request = wire::ListStatementsRequest::default();
        let statements = DirectoryServiceClient::new(channel).list_statements(request).await.unwrap();
        self.trust.verify_statements(statements.into_inner()).unwrap().1
    }
}
