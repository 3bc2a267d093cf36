//! The servers of this room, as a process or a test starts them.

use crate::config::{DirectoryConfig, EvaluatorConfig, MirrorConfig};
use crate::evaluator::Evaluator;
use crate::keyfile::{self, Role};
use crate::mirror::Mirror;
use crate::rpc;
use crate::sequencer::{Parts, Sequencer};
use crate::view::{Showing, View};
use crate::{DirectoryError, store};
use chancery_directory_core::SigningKey;
use chancery_directory_core::note::{self, CheckpointSigner};
use chancery_directory_core::operation::OperationKey;
use chancery_directory_log::Appender;
use chancery_kit::entrance::Entrance;
use chancery_kit::serve::{add_health, add_reflection};
use chancery_kit::store::Store;
use chancery_kit::tls::{Credentials, connect_lazy};
use chancery_pki_core::Party;
use chancery_types::Entropy;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

/// The directory's own keys, in files of its folder: `checkpoint.key` and
/// `operation.key`.
#[derive(Debug)]
pub struct DirectoryKeyFiles {
    signer: CheckpointSigner,
    operation: OperationKey,
}

impl DirectoryKeyFiles {
    /// Opens the files, made first when there are none.
    ///
    /// # Errors
    /// The key files, see [`keyfile::load_or_create`].
    pub fn open(folder: &Path, federation: &str, entropy: &dyn Entropy) -> Result<Self, DirectoryError> {
        let seed = keyfile::load_or_create(&folder.join("checkpoint.key"), Role::Checkpoint, entropy)?;
        let signer = CheckpointSigner::new(&note::origin(federation), SigningKey::from_bytes(&seed))?;
        let seed = keyfile::load_or_create(&folder.join("operation.key"), Role::Operation, entropy)?;
        Ok(Self { signer, operation: OperationKey::from_seed(&seed)? })
    }

    /// Verifier key of the log, for the federation's bundle.
    pub fn vkey(&self) -> String {
        self.signer.vkey()
    }

    /// HPKE public key, for the log's entry of the directory's keys.
    pub const fn hpke_public_key(&self) -> &[u8; 32] {
        self.operation.public()
    }
}

/// Serves the directory until `shutdown`, then drains. Callers may come without
/// a certificate, as auditors do; the calls that need one say so.
///
/// # Errors
/// Keys, store or log cannot be opened, or the transport fails.
pub async fn serve(
    config: DirectoryConfig,
    entrance: impl Into<Entrance>,
    credentials: Arc<Credentials>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), DirectoryError> {
    let keys = DirectoryKeyFiles::open(&config.folder, &config.federation, &*entropy)?;
    let store = Store::open_any(&config.database, &store::migrations()).await?;
    let (appender, log) = Appender::open(store.clone(), keys.signer).await?;
    let records = store.readers().clone();
    let showing = Showing::default();
    let (clock, views) = (Arc::clone(credentials.clock()), View::watching(&showing));
    let parts = Parts {
        federation: config.federation,
        governance: config.governance,
        store,
        database: config.database.clone(),
        appender,
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
        root_interval: config.root_interval,
    };
    let sequencer = Sequencer::start(parts, showing).await?;
    let view = views.with_sequencer(sequencer.clone(), clock);
    let writer = Some(rpc::directory::Writer { sequencer, key: keys.operation, entropy });
    let service = rpc::directory::Service::new(view, log, (records, &config.database), writer);
    serve_directory(service, entrance.into(), credentials, shutdown).await
}

/// Serves a mirror of the directory until `shutdown`, then drains: all that reads,
/// nothing that writes.
///
/// # Errors
/// Key, store or log cannot be opened, or the transport fails.
pub async fn serve_mirror(
    config: MirrorConfig,
    entrance: impl Into<Entrance>,
    credentials: Arc<Credentials>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), DirectoryError> {
    // Signs the heads of the copy for nobody but the copy itself.
    let seed = keyfile::load_or_create(&config.folder.join("copy.key"), Role::Checkpoint, &*entropy)?;
    let signer =
        CheckpointSigner::new(&note::origin(config.trust.federation()), SigningKey::from_bytes(&seed))?;
    let (channel, _) = connect_lazy(&config.directory, Party::Directory, Arc::clone(&credentials))?;
    let showing = Showing::default();
    let view = View::watching(&showing);
    let clock = Arc::clone(credentials.clock());
    let opened = Mirror::open(config.trust, channel, &config.database, signer, showing, clock);
    let (mirror, store, log) = opened.await?;
    tokio::spawn(mirror.follow(shutdown.clone()));
    let service = rpc::directory::Service::new(view, log, (store.readers().clone(), &config.database), None);
    serve_directory(service, entrance.into(), credentials, shutdown).await
}

async fn serve_directory(
    service: rpc::directory::Service,
    entrance: Entrance,
    credentials: Arc<Credentials>,
    shutdown: CancellationToken,
) -> Result<(), DirectoryError> {
    let mut routes = RoutesBuilder::default();
    routes.add_service(service.into_server());
    add_health(&mut routes, &[rpc::directory::NAME]).await;
    add_reflection(&mut routes, &[rpc::directory::NAME])?;
    tracing::info!(address = ?entrance.address(), "the directory listens");
    Ok(entrance.serve(credentials, routes, shutdown).await?)
}

/// Serves an evaluator until `shutdown`, then drains. Evaluations are for
/// nodes; ceremonies for whoever carries messages that governance and the
/// evaluators signed.
///
/// # Errors
/// Its files cannot be read, or the transport fails.
pub async fn serve_evaluator(
    config: EvaluatorConfig,
    entrance: impl Into<Entrance>,
    credentials: Arc<Credentials>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), DirectoryError> {
    let entrance = entrance.into();
    let evaluator = Evaluator::open(config, &credentials, entropy).await?;
    let mut routes = RoutesBuilder::default();
    routes.add_service(rpc::evaluator::evaluations(evaluator.clone()));
    routes.add_service(rpc::evaluator::ceremonies(evaluator.clone()));
    add_health(&mut routes, &rpc::evaluator::NAMES).await;
    add_reflection(&mut routes, &rpc::evaluator::NAMES)?;
    tokio::spawn(evaluator.follow(shutdown.clone()));
    tracing::info!(address = ?entrance.address(), "the evaluator listens");
    Ok(entrance.serve(credentials, routes, shutdown).await?)
}
