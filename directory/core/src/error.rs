//! What this crate refuses, and how a refusal reads on the wire.

use chancery_types::{NameError, Reason, Refusal, WrongLength};

/// Why something is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field is missing, too long or malformed.
    #[error("{0}")]
    Field(&'static str),
    /// An id has the wrong length.
    #[error(transparent)]
    Length(#[from] WrongLength),
    /// A name is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// More items or bytes than the limit.
    #[error("{0}")]
    TooLarge(&'static str),
    /// A group element is not canonical or is the identity.
    #[error("an element is not canonical or is the identity")]
    Element,
    /// An evaluator's answer does not verify.
    #[error("evaluator {index} gave a wrong evaluation: {why}")]
    WrongEvaluation {
        /// Index of its share.
        index: u32,
        /// What is wrong.
        why: &'static str,
    },
    /// Fewer evaluators answered than the epoch needs.
    #[error("{answers} of {threshold} needed evaluators answered")]
    TooFewEvaluators {
        /// How many answered.
        answers: usize,
        /// How many must.
        threshold: u32,
    },
    /// This build cannot do it.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The key epoch is not the current one.
    #[error("the key epoch or generation is not the current one")]
    WrongKeyEpoch,
    /// A record's or attestation's signature or content is wrong.
    #[error("{0}")]
    Record(&'static str),
    /// The authority is not admitted for the scheme.
    #[error("the attestation's authority is not admitted for its scheme")]
    AuthorityNotAdmitted,
    /// The attestation is expired or from the future.
    #[error("the attestation is expired or not yet valid")]
    AttestationExpired,
    /// A claim or receipt at enrolment does not hold.
    #[error("{0}")]
    Enrolment(&'static str),
    /// The record moved on.
    #[error("the record stands at another version or entry")]
    VersionConflict,
    /// The record is closed.
    #[error("the record is closed: its owner left")]
    Closed,
    /// The record was changed as often as it may be in a day.
    #[error("a record is changed at most 20 times a day")]
    ChangeLimit,
    /// A re-enrolment is pending that this cannot end.
    #[error("a re-enrolment of the handle is pending")]
    ReEnrolmentPending,
    /// The newest root that the directory shows is too old.
    #[error("what the directory shows is more than 7 days old")]
    Stale,
    /// A message, transcript or plan of the evaluators' ceremony does not hold.
    #[error("{0}")]
    Ceremony(&'static str),
    /// An evaluator's totals do not hold.
    #[error("{0}")]
    Totals(&'static str),
    /// Nobody published the channel.
    #[error("the channel is not in the log")]
    ChannelUnknown,
    /// The channel or its broadcasts moved on, or tell two things.
    #[error("{0}")]
    ChannelConflict(&'static str),
    /// Whoever signed is not the agent that speaks on the channel.
    #[error("{0}")]
    NotYourChannel(&'static str),
    /// The channel is closed.
    #[error("the channel is closed")]
    ChannelClosed,
    /// The administration may not carry emergencies.
    #[error("the administration is not accredited for emergencies")]
    NotAccredited,
    /// A sealed message does not open.
    #[error("a sealed message does not open")]
    CannotOpen,
    /// Too few valid governance signatures.
    #[error("the statement has {valid} of {needed} needed governance signatures")]
    NotGoverned {
        /// Valid signatures by distinct governance keys.
        valid: usize,
        /// How many it takes.
        needed: usize,
    },
    /// A statement contradicts the log.
    #[error("{0}")]
    Statement(&'static str),
    /// A checkpoint or proof does not hold: the directory misbehaves.
    #[error("{0}")]
    Proof(&'static str),
    /// A cryptographic library failed where it cannot.
    #[error("{0}")]
    Internal(&'static str),
}

impl Error {
    /// The stable reason on the wire.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Field(_) | Self::Length(_) | Self::Name(_) | Self::Statement(_) | Self::Totals(_) => {
                Reason::InvalidField
            }
            Self::TooLarge(_) => Reason::TooLarge,
            Self::Element => Reason::InvalidElement,
            Self::WrongEvaluation { .. } => Reason::WrongEvaluation,
            Self::TooFewEvaluators { .. } => Reason::DirectoryUnreachable,
            Self::Unsupported(_) => Reason::Unsupported,
            Self::WrongKeyEpoch => Reason::WrongKeyEpoch,
            Self::Record(_) => Reason::InvalidRecord,
            Self::AuthorityNotAdmitted => Reason::AuthorityNotAdmitted,
            Self::AttestationExpired => Reason::AttestationExpired,
            Self::Enrolment(_) => Reason::EnrolmentRefused,
            Self::VersionConflict => Reason::RecordVersionConflict,
            Self::Closed => Reason::RecipientClosed,
            Self::ChangeLimit => Reason::RecordChangeLimit,
            Self::ReEnrolmentPending => Reason::ReEnrolmentPending,
            Self::Stale => Reason::DirectoryStale,
            Self::Ceremony(_) => Reason::InvalidCeremony,
            Self::ChannelUnknown => Reason::ChannelUnknown,
            Self::ChannelConflict(_) => Reason::ChannelConflict,
            Self::NotYourChannel(_) => Reason::NotYourChannel,
            Self::ChannelClosed => Reason::ChannelClosed,
            Self::NotAccredited => Reason::NotAccredited,
            Self::CannotOpen => Reason::CannotOpen,
            Self::NotGoverned { .. } => Reason::NotGoverned,
            Self::Proof(_) => Reason::InvalidProof,
            Self::Internal(_) => Reason::Internal,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}
