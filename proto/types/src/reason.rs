//! Why something was refused: a stable reason, whose fault it is, whether
//! trying again can help. One table for the whole mesh; `chancery-kit` turns
//! a [`Refusal`] into a gRPC status and back.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Whoever called.
    Caller,
    /// Another member's node.
    Peer,
    /// The directory, an evaluator or an authority.
    Directory,
    /// Nobody's: a rule of the federation says no.
    Policy,
    /// Ours.
    Own,
}

impl Fault {
    /// As in the metadata of `google.rpc.ErrorInfo`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Peer => "peer",
            Self::Directory => "directory",
            Self::Policy => "policy",
            Self::Own => "self",
        }
    }
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same request will be refused again.
    Never,
    /// The same request may pass later.
    Later,
    /// After the caller has renewed what it knows (epoch, record, session).
    AfterRefresh,
}

impl Retry {
    /// As in the metadata of `google.rpc.ErrorInfo`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Later => "later",
            Self::AfterRefresh => "after_refresh",
        }
    }
}

/// The canonical gRPC codes that refusals use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// INVALID_ARGUMENT
    InvalidArgument,
    /// NOT_FOUND
    NotFound,
    /// ALREADY_EXISTS
    AlreadyExists,
    /// PERMISSION_DENIED
    PermissionDenied,
    /// UNAUTHENTICATED
    Unauthenticated,
    /// RESOURCE_EXHAUSTED
    ResourceExhausted,
    /// FAILED_PRECONDITION
    FailedPrecondition,
    /// ABORTED
    Aborted,
    /// UNAVAILABLE
    Unavailable,
    /// DEADLINE_EXCEEDED
    DeadlineExceeded,
    /// UNIMPLEMENTED
    Unimplemented,
    /// INTERNAL
    Internal,
}

macro_rules! reasons {
    ($($(#[doc = $doc:expr])* $name:ident = $text:literal, $code:ident, $fault:ident, $retry:ident;)*) => {
        /// A stable reason, as in `google.rpc.ErrorInfo.reason`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As on the wire: upper snake case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// From the wire; `None` for a reason of a newer peer.
            pub fn from_wire(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }

            /// The gRPC code that goes with it.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// Whose fault it is.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }

            /// Whether trying again can help.
            pub const fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry,)* }
            }
        }
    };
}

reasons! {
    /// A field is missing, too long, or not what its comment says.
    InvalidField = "INVALID_FIELD", InvalidArgument, Caller, Never;
    /// An identifier's form or check digits are wrong, or its scheme is unknown.
    InvalidIdentifier = "INVALID_IDENTIFIER", InvalidArgument, Caller, Never;
    /// More bytes or items than the limit.
    TooLarge = "TOO_LARGE", InvalidArgument, Caller, Never;
    /// A request id was used before with another content.
    RequestIdReused = "REQUEST_ID_REUSED", AlreadyExists, Caller, Never;
    /// The connection is not bound to a device, or no client certificate was shown.
    NotAuthenticated = "NOT_AUTHENTICATED", Unauthenticated, Caller, AfterRefresh;
    /// A signature that proves possession is wrong.
    WrongSignature = "WRONG_SIGNATURE", PermissionDenied, Caller, Never;
    /// The certificate names another party than this door is for.
    WrongIdentity = "WRONG_IDENTITY", PermissionDenied, Caller, Never;
    /// The caller's certificate chain does not hold.
    WrongCertificate = "WRONG_CERTIFICATE", PermissionDenied, Caller, Never;
    /// The calling node is not a member of the federation.
    NotAMember = "NOT_A_MEMBER", PermissionDenied, Caller, Never;
    /// The certificate's key is not the one the log pins.
    WrongNodeKey = "WRONG_NODE_KEY", PermissionDenied, Caller, Never;
    /// The alias is not the caller's.
    NotYourAlias = "NOT_YOUR_ALIAS", PermissionDenied, Caller, Never;
    /// The alias is not on this node.
    AliasUnknown = "ALIAS_UNKNOWN", NotFound, Caller, AfterRefresh;
    /// The alias has another home now: resolve it again.
    AliasMoved = "ALIAS_MOVED", FailedPrecondition, Caller, AfterRefresh;
    /// The alias is in other groups than were named: list them again.
    RoutesChanged = "ROUTES_CHANGED", Aborted, Caller, AfterRefresh;
    /// The alias, account or device is taken by another.
    AlreadyTaken = "ALREADY_TAKEN", AlreadyExists, Caller, Never;
    /// The device is unknown on this node.
    DeviceUnknown = "DEVICE_UNKNOWN", NotFound, Caller, Never;
    /// The device is the account's last.
    LastDevice = "LAST_DEVICE", FailedPrecondition, Caller, Never;
    /// A device of the alias has no KeyPackage of any wanted suite.
    NoKeyPackage = "NO_KEY_PACKAGE", FailedPrecondition, Peer, Later;
    /// The group is unknown here.
    GroupUnknown = "GROUP_UNKNOWN", NotFound, Caller, Never;
    /// The alias is not a member of the group.
    NotInGroup = "NOT_IN_GROUP", PermissionDenied, Caller, Never;
    /// The group has moved to another epoch.
    StaleEpoch = "STALE_EPOCH", Aborted, Caller, AfterRefresh;
    /// The message expired before it could be handed over.
    Expired = "EXPIRED", FailedPrecondition, Policy, Never;
    /// A delivery came from a node that is not the group's hub.
    WrongHub = "WRONG_HUB", PermissionDenied, Peer, Never;
    /// A newer subscription of the same device took over.
    SubscriptionReplaced = "SUBSCRIPTION_REPLACED", Aborted, Caller, Later;
    /// The blob is not there.
    BlobUnknown = "BLOB_UNKNOWN", NotFound, Caller, Never;
    /// The bytes do not hash to the blob's id.
    BlobMismatch = "BLOB_MISMATCH", InvalidArgument, Caller, Never;
    /// The offset is not where the stored bytes end.
    WrongOffset = "WRONG_OFFSET", FailedPrecondition, Caller, AfterRefresh;
    /// Something of the caller's is used up for now.
    QuotaExceeded = "QUOTA_EXCEEDED", ResourceExhausted, Policy, Later;
    /// This server is at its limit; shed early.
    Overloaded = "OVERLOADED", ResourceExhausted, Own, Later;
    /// The server is going away.
    ShuttingDown = "SHUTTING_DOWN", Unavailable, Own, Later;
    /// Another member's node cannot be reached.
    PeerUnreachable = "PEER_UNREACHABLE", Unavailable, Peer, Later;
    /// Another member's node answered what the protocol forbids.
    PeerMisbehaved = "PEER_MISBEHAVED", Internal, Peer, Never;
    /// The directory or an evaluator cannot be reached.
    DirectoryUnreachable = "DIRECTORY_UNREACHABLE", Unavailable, Directory, Later;
    /// The directory or an evaluator answered what the protocol forbids.
    DirectoryMisbehaved = "DIRECTORY_MISBEHAVED", Internal, Directory, Never;
    /// The protocol versions of two nodes do not overlap.
    VersionUnsupported = "VERSION_UNSUPPORTED", FailedPrecondition, Peer, Never;
    /// A call did not end in time.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, Own, Later;
    /// A join token is unknown, spent or expired.
    JoinTokenInvalid = "JOIN_TOKEN_INVALID", PermissionDenied, Caller, Never;
    /// A join token was spent by another certificate request.
    JoinTokenSpent = "JOIN_TOKEN_SPENT", PermissionDenied, Caller, Never;
    /// A certificate request does not parse or does not prove possession.
    InvalidCsr = "INVALID_CSR", InvalidArgument, Caller, Never;
    /// Key epoch or generation of the evaluators is not the current one.
    WrongKeyEpoch = "WRONG_KEY_EPOCH", FailedPrecondition, Caller, AfterRefresh;
    /// An element is not canonical or is the identity.
    InvalidElement = "INVALID_ELEMENT", InvalidArgument, Caller, Never;
    /// An evaluator's proof does not verify.
    WrongEvaluation = "WRONG_EVALUATION", Internal, Directory, Never;
    /// Nobody enrolled the identifier.
    RecipientAbsent = "RECIPIENT_ABSENT", NotFound, Caller, Never;
    /// The recipient's record is closed: its owner left.
    RecipientClosed = "RECIPIENT_CLOSED", FailedPrecondition, Policy, Never;
    /// A record's or attestation's signature or content is wrong.
    InvalidRecord = "INVALID_RECORD", InvalidArgument, Caller, Never;
    /// The attestation's authority is not admitted for the scheme.
    AuthorityNotAdmitted = "AUTHORITY_NOT_ADMITTED", PermissionDenied, Caller, Never;
    /// The attestation is expired or not yet valid.
    AttestationExpired = "ATTESTATION_EXPIRED", FailedPrecondition, Caller, Never;
    /// The authority has no proof that the identifier is the caller's.
    EnrolmentRefused = "ENROLMENT_REFUSED", PermissionDenied, Caller, Never;
    /// The record has moved to another version.
    RecordVersionConflict = "RECORD_VERSION_CONFLICT", Aborted, Caller, AfterRefresh;
    /// The record was changed as often as it may be in a day.
    RecordChangeLimit = "RECORD_CHANGE_LIMIT", ResourceExhausted, Policy, Later;
    /// A re-enrolment of the handle is pending, which this cannot end.
    ReEnrolmentPending = "RE_ENROLMENT_PENDING", FailedPrecondition, Policy, Later;
    /// The channel is not in the log.
    ChannelUnknown = "CHANNEL_UNKNOWN", NotFound, Caller, Never;
    /// Another version of the channel, or another broadcast of its sequence, was logged.
    ChannelConflict = "CHANNEL_CONFLICT", Aborted, Caller, AfterRefresh;
    /// The channel's owner lists no such agent, or another one speaks on it.
    NotYourChannel = "NOT_YOUR_CHANNEL", PermissionDenied, Caller, Never;
    /// Nothing is broadcast on the channel any more.
    ChannelClosed = "CHANNEL_CLOSED", FailedPrecondition, Policy, Never;
    /// The administration is not accredited for emergencies.
    NotAccredited = "NOT_ACCREDITED", PermissionDenied, Policy, Never;
    /// It waited in a store that has been restored from a copy since: ask anew.
    StoreRestored = "STORE_RESTORED", Aborted, Own, Never;
    /// What the directory shows is too old to be believed.
    DirectoryStale = "DIRECTORY_STALE", Unavailable, Directory, Later;
    /// A message, transcript or plan of the evaluators' ceremony does not hold.
    InvalidCeremony = "INVALID_CEREMONY", FailedPrecondition, Caller, Never;
    /// A sealed message does not open.
    CannotOpen = "CANNOT_OPEN", InvalidArgument, Caller, Never;
    /// A governance statement has too few valid signatures.
    NotGoverned = "NOT_GOVERNED", PermissionDenied, Caller, Never;
    /// A proof does not lead to the checkpoint, or the checkpoint is not signed.
    InvalidProof = "INVALID_PROOF", Internal, Directory, Never;
    /// A KeyPackage does not lead back to the recipient's record.
    FalseKeyPackage = "FALSE_KEY_PACKAGE", Internal, Peer, Never;
    /// A message of a group does not decrypt or breaks a rule of the thread.
    InvalidMessage = "INVALID_MESSAGE", Internal, Peer, Never;
    /// The thread is unknown.
    ThreadUnknown = "THREAD_UNKNOWN", NotFound, Caller, Never;
    /// The attachment is unknown or not complete.
    AttachmentUnknown = "ATTACHMENT_UNKNOWN", NotFound, Caller, Never;
    /// The peer is of a kind that this build does not know.
    Unsupported = "UNSUPPORTED", Unimplemented, Caller, Never;
    /// Something broke on our side; the log has more.
    Internal = "INTERNAL", Internal, Own, Later;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal as a value: what every boundary's error type turns into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// For people: what is wrong and what to do. Never an identifier, handle,
    /// alias, key or content.
    pub message: Cow<'static, str>,
    /// When to try again, where whoever refuses knows better than the reason does.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }

    /// The same, and when to try again.
    pub fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// A field of a request is not what its comment says.
    pub fn field(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Reason::InvalidField, message)
    }
}

impl From<crate::WrongLength> for Refusal {
    fn from(error: crate::WrongLength) -> Self {
        Self::field(error.to_string())
    }
}

impl From<crate::NameError> for Refusal {
    fn from(error: crate::NameError) -> Self {
        Self::field(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_follow_aip_193() {
        for reason in Reason::ALL {
            let text = reason.as_str();
            assert!(text.len() <= 63 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
            assert_eq!(Reason::from_wire(text), Some(*reason));
        }
    }
}
