//! What should never happen and somebody ought to look at.

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// The hub left out a message of a thread.
    Withheld,
    /// The hub delivered messages of a thread in another order than it numbered them.
    Reordered,
    /// The hub's hash chain does not hold, or it told another member another one.
    Forked,
    /// A commit broke a rule of the thread, in whose group nothing is read any more.
    ForbiddenCommit,
    /// A message does not decrypt or does not agree with its envelope.
    InvalidMessage,
    /// A delivery receipt is not signed by a device of the recipient, or is for other bytes.
    ForgedReceipt,
    /// Somebody opened a thread whose devices do not verify.
    FalseThread,
    /// The directory showed two logs of which neither contains the other.
    DirectoryForked,
    /// What the directory shows is more than an hour old.
    DirectoryStale,
    /// This account's record is not the one that this device put.
    RecordChanged,
    /// This endpoint's store was restored from a copy: what came since is missing here.
    Restored,
    /// Somebody re-enrols this account's handle with another account key.
    ReEnrolment,
    /// A node brought seats in a channel of ours that the residents' home did not sign.
    FalseSeats,
    /// Somebody else than its agent committed or spoke in a broadcast channel's cell.
    ForbiddenInCell,
    /// A broadcast is not in the log, or does not follow on the one before.
    ForgedBroadcast,
    /// A broadcast opens as something else than its manifest commits to.
    FalseBroadcast,
    /// The home node has left out a broadcast, or its key, or has not brought what the directory's map shows.
    BroadcastWithheld,
}

impl Alarm {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Withheld,
        Self::Reordered,
        Self::Forked,
        Self::ForbiddenCommit,
        Self::InvalidMessage,
        Self::ForgedReceipt,
        Self::FalseThread,
        Self::DirectoryForked,
        Self::DirectoryStale,
        Self::RecordChanged,
        Self::Restored,
        Self::ReEnrolment,
        Self::FalseSeats,
        Self::ForbiddenInCell,
        Self::ForgedBroadcast,
        Self::FalseBroadcast,
        Self::BroadcastWithheld,
    ];

    /// A stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Withheld => "withheld",
            Self::Reordered => "reordered",
            Self::Forked => "forked",
            Self::ForbiddenCommit => "forbidden_commit",
            Self::InvalidMessage => "invalid_message",
            Self::ForgedReceipt => "forged_receipt",
            Self::FalseThread => "false_thread",
            Self::DirectoryForked => "directory_forked",
            Self::DirectoryStale => "directory_stale",
            Self::RecordChanged => "record_changed",
            Self::Restored => "restored",
            Self::ReEnrolment => "re_enrolment",
            Self::FalseSeats => "false_seats",
            Self::ForbiddenInCell => "forbidden_in_cell",
            Self::ForgedBroadcast => "forged_broadcast",
            Self::FalseBroadcast => "false_broadcast",
            Self::BroadcastWithheld => "broadcast_withheld",
        }
    }
}
