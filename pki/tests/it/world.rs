//! A federation for one test: authority, running enrolment service, one clock.

use chancery_kit::tls::enrol::{self, EnrolError};
use chancery_kit::tls::files::IdentityFolder;
use chancery_kit::tls::{Credentials, connect};
use chancery_pki::Authority;
use chancery_pki_core::{Crls, LeafNames, Party, VerifiedPeer};
use chancery_proto::pki::v1::enrolment_service_client::EnrolmentServiceClient;
use chancery_types::clock::ManualClock;
use chancery_types::{Clock, Reason, SystemEntropy, Timestamp};
use secrecy::SecretString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) folder: TempDir,
    pub(crate) authority: Arc<Authority>,
    /// The enrolment service's own.
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) endpoint: String,
    _stop: DropGuard,
}

pub(crate) fn passphrase() -> SecretString {
    SecretString::from("correct horse battery")
}

pub(crate) fn node(name: &str) -> Party {
    Party::Node(name.parse().unwrap())
}

pub(crate) async fn init(folder: &Path, clock: &Arc<ManualClock>) -> Authority {
    let federation = "chancery.example".parse().unwrap();
    let (clock, entropy) = (Arc::clone(clock) as _, Arc::new(SystemEntropy));
    Authority::init(folder, &federation, &passphrase(), clock, entropy).await.unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(init(&folder.path().join("pki"), &clock).await);
        let names = LeafNames::parse(&["localhost", "127.0.0.1"]).unwrap();
        let credentials = authority.own_credentials(&names).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let (serving, own) = (Arc::clone(&authority), Arc::clone(&credentials));
        tokio::spawn(chancery_pki::serve(serving, listener, own, stop.clone()));
        Self { clock, folder, authority, credentials, endpoint, _stop: stop.drop_guard() }
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as _
    }

    pub(crate) async fn token(&self, party: &Party) -> String {
        let names = LeafNames::parse(&["localhost"]).unwrap();
        self.authority.issue_token(party, &names, DAY).await.unwrap().to_string()
    }

    pub(crate) fn identity(&self, name: &str) -> IdentityFolder {
        IdentityFolder::new(self.folder.path().join(name))
    }

    pub(crate) async fn try_enrol(&self, name: &str, token: &str) -> Result<VerifiedPeer, EnrolError> {
        let folder = self.identity(name);
        enrol::enrol(&self.endpoint, self.authority.anchors(), token, &folder, self.clock()).await
    }

    /// Enrols `party` into the folder `name` and opens what came of it.
    pub(crate) async fn enrol(&self, name: &str, party: &Party) -> Arc<Credentials> {
        let token = self.token(party).await;
        self.try_enrol(name, &token).await.unwrap();
        self.open(name)
    }

    pub(crate) fn open(&self, name: &str) -> Arc<Credentials> {
        Credentials::open(self.identity(name), self.authority.anchors().clone(), self.clock()).unwrap()
    }

    pub(crate) fn anonymous(&self) -> Arc<Credentials> {
        Credentials::anonymous(self.authority.anchors().clone(), Crls::default(), self.clock())
    }

    pub(crate) async fn client(&self, credentials: Arc<Credentials>) -> EnrolmentServiceClient<Channel> {
        EnrolmentServiceClient::new(connect(&self.endpoint, Party::Pki, credentials).await.unwrap().0)
    }
}

pub(crate) fn reason(status: &tonic::Status) -> Reason {
    chancery_kit::status::from_status(status).reason
}

/// The reason that the enrolment service gave.
pub(crate) fn refused<T>(result: Result<T, EnrolError>) -> Reason {
    match result {
        Err(EnrolError::Refused(refusal)) => refusal.reason,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("not refused"),
    }
}
