//! Validated words that all rooms share: ids, national identifiers, time,
//! randomness and error reasons. No I/O.

pub mod clock;
pub mod entropy;
pub mod id;
pub mod identifier;
pub mod name;
pub mod reason;

pub use clock::{Clock, SystemClock, Timestamp};
pub use entropy::{Entropy, SystemEntropy};
pub use id::{
    AccountId, Alias, BlobId, Chain, ChannelId, DeviceId, GroupId, Handle, Incarnation, KeyPackageRef,
    MessageId, SeatId, WrongLength,
};
pub use identifier::{Identifier, IdentifierError, Scheme};
pub use name::{NameError, NodeId};
pub use reason::{Fault, Reason, Refusal, Retry};
