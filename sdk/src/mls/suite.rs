//! The two cipher suites of threads, what a leaf says it can do, and how groups
//! are configured.

use chancery_directory_core::channel::Suite as ChannelSuite;
use chancery_types::Timestamp;
use openmls::prelude::{
    Capabilities, Ciphersuite, CredentialType, ExtensionType, Lifetime, MlsGroup, MlsGroupBuilder,
    MlsGroupJoinConfig, PURE_CIPHERTEXT_WIRE_FORMAT_POLICY, ProtocolVersion,
};
use std::time::Duration;

/// How long a KeyPackage lives: within the 84 days that openmls accepts.
pub(crate) const KEY_PACKAGE_LIFETIME: Duration = Duration::from_hours(83 * 24);
/// How far clocks may differ.
pub(crate) const SKEW: Duration = Duration::from_hours(1);
/// Application messages are padded to a multiple of this many bytes.
const PADDING: usize = 64;

/// A cipher suite of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Suite {
    /// 0x004F, MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519: where both ends have it.
    Hybrid,
    /// 0x0001, MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519: what every end has
    /// (RFC 9420, section 17.1).
    Classical,
}

impl Suite {
    /// All, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Hybrid, Self::Classical];

    /// The code point on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Self::Hybrid => 0x004f,
            Self::Classical => 0x0001,
        }
    }

    /// From the code point.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.code() == code)
    }

    /// Of a broadcast channel's cells.
    pub(crate) const fn of_channel(suite: ChannelSuite) -> Self {
        match suite {
            ChannelSuite::Hybrid => Self::Hybrid,
            ChannelSuite::Classical => Self::Classical,
        }
    }

    pub(crate) const fn ciphersuite(self) -> Ciphersuite {
        match self {
            Self::Hybrid => Ciphersuite::MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519,
            Self::Classical => Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        }
    }

    pub(crate) fn of(ciphersuite: Ciphersuite) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.ciphersuite() == ciphersuite)
    }
}

/// What every leaf of ours says it can do. Explicit: the providers' own lists
/// leave the hybrid suites out.
pub(crate) fn capabilities() -> Capabilities {
    Capabilities::new(
        Some(&[ProtocolVersion::Mls10]),
        Some(&Suite::ALL.map(Suite::ciphersuite)),
        Some(&[ExtensionType::LastResort]),
        Some(&[]),
        Some(&[CredentialType::Basic]),
    )
}

/// From an hour ago for [`KEY_PACKAGE_LIFETIME`].
pub(crate) fn lifetime(now: Timestamp) -> Lifetime {
    let seconds = |time: Timestamp| u64::try_from(time.seconds()).unwrap_or(0);
    Lifetime::init(seconds(now.before(SKEW)), seconds(now.after(KEY_PACKAGE_LIFETIME)))
}

/// `max_past_epochs` stays 0: the hub refuses messages of other epochs, and a
/// copy of every member for each epoch would be rewritten with each message.
pub(crate) fn join_config() -> MlsGroupJoinConfig {
    join_with(true)
}

pub(crate) fn create(suite: Suite, now: Timestamp) -> MlsGroupBuilder {
    create_with(suite, now, true)
}

/// Of a broadcast channel's cell: its tree is fetched apart from the Welcome.
pub(crate) fn cell_join_config() -> MlsGroupJoinConfig {
    join_with(false)
}

/// As [`cell_join_config`].
pub(crate) fn create_cell(suite: Suite, now: Timestamp) -> MlsGroupBuilder {
    create_with(suite, now, false)
}

fn join_with(tree_in_welcome: bool) -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(tree_in_welcome)
        .padding_size(PADDING)
        .max_past_epochs(0)
        .number_of_resumption_psks(0)
        .build()
}

fn create_with(suite: Suite, now: Timestamp, tree_in_welcome: bool) -> MlsGroupBuilder {
    MlsGroup::builder()
        .with_wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(tree_in_welcome)
        .padding_size(PADDING)
        .max_past_epochs(0)
        .number_of_resumption_psks(0)
        .ciphersuite(suite.ciphersuite())
        .with_capabilities(capabilities())
        .lifetime(lifetime(now))
}
