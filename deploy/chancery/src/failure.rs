//! Everything that can end a command, for people.

use chancery_types::Refusal;
use std::net::SocketAddr;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A file or folder.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The system does not let this process keep its memory to itself.
    #[error("core dumps cannot be forbidden: {0}")]
    Memory(std::io::Error),
    /// A port is taken.
    #[error(
        "cannot listen on {address}: {error}; another federation may be running, or choose --port with a new --dir"
    )]
    Port {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// A name is none.
    #[error("a name of the federation is not valid")]
    Name,
    /// A party has no certificate.
    #[error("a party has no certificate")]
    NoCertificate,
    /// A task of ours broke.
    #[error("a task broke; the log has more")]
    Panicked,
    /// A party stopped.
    #[error("a party of the federation stopped unexpectedly")]
    Stopped,
    /// Nothing moved any more.
    #[error("no letter moved for {0} seconds; the log has more (--log info)")]
    Stalled(u64),
    /// Not every letter arrived intact and once.
    #[error("not every letter arrived intact and once")]
    NotAllArrived,
    /// The books of a run of chaos do not balance.
    #[error("the books do not balance, or a party ended by itself; what is left of the run is in {0}")]
    Chaos(std::path::PathBuf),
    /// A letter cannot be sent.
    #[error("{0}")]
    Letter(String),
    /// A server said no.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The list of recipients.
    #[error("list of recipients: {0}")]
    List(#[from] chancery::mailing::recipients::RowError),
    /// The letter template.
    #[error("letter template: {0}")]
    Template(#[from] chancery::mailing::template::TemplateError),
    /// The sample attachments.
    #[error(transparent)]
    Asset(#[from] chancery::mailing::assets::AssetError),
    /// Synthetic recipients.
    #[error(transparent)]
    Synthetic(#[from] chancery::mailing::synthetic::SyntheticError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] chancery_kit::tls::TlsError),
    /// A chain or revocation list.
    #[error(transparent)]
    Chain(#[from] chancery_pki_core::ChainError),
    /// Enrolment.
    #[error(transparent)]
    Enrol(#[from] chancery_kit::tls::enrol::EnrolError),
    /// Certificate names.
    #[error(transparent)]
    Profile(#[from] chancery_pki_core::ProfileError),
    /// The federation's bundle.
    #[error(transparent)]
    Bundle(#[from] chancery_pki_core::BundleError),
    /// An identifier is none of its scheme.
    #[error(transparent)]
    Identifier(chancery_types::IdentifierError),
    /// An enrolment authority.
    #[error(transparent)]
    EnrolmentAuthority(#[from] chancery_sdk::authority::AuthorityError),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] chancery_pki::AuthorityError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] chancery_kit::serve::ServeError),
    /// A command of the PKI.
    #[error(transparent)]
    Pki(#[from] chancery_pki::command::CommandError),
    /// The directory or an evaluator.
    #[error(transparent)]
    Directory(#[from] chancery_directory::DirectoryError),
    /// What the directory says does not hold.
    #[error(transparent)]
    DirectoryCore(#[from] chancery_directory_core::Error),
    /// A node.
    #[error(transparent)]
    Node(#[from] chancery_node::NodeError),
    /// A command of a node.
    #[error(transparent)]
    NodeCommand(#[from] chancery_node::command::CommandError),
    /// A command of an agent.
    #[error(transparent)]
    AgentCommand(#[from] chancery_sdk::agent::command::CommandError),
    /// What a party starts from.
    #[error(transparent)]
    Party(#[from] chancery_kit::party::PartyError),
    /// An agent.
    #[error(transparent)]
    Agent(#[from] chancery_sdk::agent::AgentError),
    /// A store.
    #[error(transparent)]
    Store(#[from] chancery_kit::store::StoreError),
    /// Telemetry.
    #[error(transparent)]
    Telemetry(#[from] chancery_kit::telemetry::TelemetryError),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] chancery_kit::config::ConfigError),
    /// An attachment.
    #[error(transparent)]
    Attachment(#[from] chancery_sdk::attachment::AttachmentError),
    /// A connection.
    #[error("cannot connect: {0}; is the agent running?")]
    Connect(#[from] tonic::transport::Error),
    /// JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Failure {
    /// A call that was answered by a status.
    pub(crate) fn call(status: tonic::Status) -> Self {
        Self::Refused(chancery_kit::status::from_status(&status))
    }
}
