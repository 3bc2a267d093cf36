//! What somebody believes of the federation's log while it grows: the newest
//! checkpoint seen, which each later one must continue, and what governs.

use chancery_directory_core::{FederationState, Trust, VerifiedCheckpoint};
use chancery_kit::status::call_within;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::{Reason, Refusal};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tonic::transport::Channel;

/// How long a call to the directory may take.
const CALL: Duration = Duration::from_secs(20);
/// Largest answer of the directory, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Follows the log through a channel to the directory.
#[derive(Debug)]
pub struct Follower {
    trust: Trust,
    directory: Channel,
    newest: Mutex<Option<VerifiedCheckpoint>>,
    state: watch::Sender<Arc<FederationState>>,
}

impl Follower {
    /// Knows nothing yet.
    pub fn new(trust: Trust, directory: Channel) -> Self {
        Self { trust, directory, newest: Mutex::default(), state: watch::Sender::default() }
    }

    /// What everything is verified from.
    pub const fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What governs, as last verified.
    pub fn state(&self) -> Arc<FederationState> {
        Arc::clone(&self.state.borrow())
    }

    /// Changes when [`Follower::state`] does.
    pub fn changes(&self) -> watch::Receiver<Arc<FederationState>> {
        self.state.subscribe()
    }

    /// The directory.
    pub fn directory(&self) -> DirectoryServiceClient<Channel> {
        DirectoryServiceClient::new(self.directory.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Verifies statements and believes them, unless their checkpoint is older
    /// than, or does not continue, the newest that was seen.
    ///
    /// # Errors
    /// They do not hold, or the directory cannot be reached for the proof.
    pub async fn learn(&self, statements: wire::ListStatementsResponse) -> Result<(), Refusal> {
        let (checkpoint, state) = self.trust.verify_statements(statements)?;
        let mut newest = self.newest.lock().await;
        if let Some(older) = newest.as_ref() {
            let path = if checkpoint.size() > older.size() && older.size() > 0 {
                let (old_size, new_size) = (older.size(), checkpoint.size());
                let request = wire::ProveConsistencyRequest { old_size, new_size };
                directory_call(self.directory().prove_consistency(request)).await?.path
            } else {
                Vec::new()
            };
            checkpoint.extends(older, &path)?;
        }
        *newest = Some(checkpoint);
        self.state.send_replace(Arc::new(state));
        Ok(())
    }

    /// Asks the directory for what governs; gives it, verified and believed.
    ///
    /// # Errors
    /// The directory cannot be reached, or as [`Follower::learn`].
    pub async fn ask(&self) -> Result<wire::ListStatementsResponse, Refusal> {
        let request = wire::ListStatementsRequest::default();
        let statements = directory_call(self.directory().list_statements(request)).await?;
        self.learn(statements.clone()).await?;
        Ok(statements)
    }
}

/// A call to the directory or an evaluator, under its deadline.
///
/// # Errors
/// Its refusal; DIRECTORY_UNREACHABLE when it does not answer.
pub async fn directory_call<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Refusal> {
    let message = "the directory or evaluator does not answer";
    call_within(CALL, call, Reason::DirectoryUnreachable, message).await
}
