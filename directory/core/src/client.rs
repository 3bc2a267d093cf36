//! What those who ask the directory verify before they believe: checkpoints,
//! governance, what became of an operation; lookups are [`crate::lookup`]'s. Still no I/O;
//! fetching is the caller's.

use crate::ceremony::conclusion::Conclusion;
use crate::channel::{Channel, SignedChannel};
use crate::entry::{Event, Leaf};
use crate::governance::{self, GovernanceKeys};
use crate::note::{self, LogVerifier, VerifiedCheckpoint};
use crate::{Error, FederationState};
use chancery_pki_core::FederationBundle;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Reason, Refusal};

/// What a party believes from the start: everything else is verified from it.
#[derive(Clone, Debug)]
pub struct Trust {
    federation: String,
    governance: GovernanceKeys,
    log: LogVerifier,
}

impl Trust {
    /// Trusts these governance keys and the log with this verifier key.
    ///
    /// # Errors
    /// The verifier key is not that of the federation's directory.
    pub fn new(federation: &str, governance: GovernanceKeys, directory_vkey: &str) -> Result<Self, Error> {
        let log = LogVerifier::new(directory_vkey)?;
        if log.origin() != note::origin(federation) {
            return Err(Error::Field("the directory's verifier key is another log's"));
        }
        Ok(Self { federation: federation.to_owned(), governance, log })
    }

    /// What a federation's bundle lets a party trust.
    ///
    /// # Errors
    /// The bundle does not name the directory's key, or names no governance.
    pub fn from_bundle(bundle: &FederationBundle) -> Result<Self, Error> {
        let vkey = bundle.directory_vkey();
        let vkey = vkey.ok_or(Error::Field("the federation's bundle does not name the directory's key"))?;
        Self::new(bundle.federation().as_str(), GovernanceKeys::from_bundle(bundle)?, vkey)
    }

    /// The federation's name.
    pub fn federation(&self) -> &str {
        &self.federation
    }

    /// Who decides.
    pub const fn governance(&self) -> &GovernanceKeys {
        &self.governance
    }

    /// Verifies a checkpoint by itself.
    ///
    /// # Errors
    /// [`Error::Proof`].
    pub fn verify_checkpoint(&self, checkpoint: &[u8]) -> Result<VerifiedCheckpoint, Error> {
        self.log.verify(checkpoint)
    }

    /// Verifies what governs: each included in the checkpoint, each
    /// under enough governance signatures. Kinds that this build does not know
    /// are left out.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn verify_statements(
        &self,
        response: wire::ListStatementsResponse,
    ) -> Result<(VerifiedCheckpoint, FederationState), Error> {
        let checkpoint = self.log.verify(&response.checkpoint)?;
        let mut state = FederationState::default();
        let mut last = None;
        for logged in response.statements {
            let inclusion = logged.inclusion.ok_or(Error::Proof("a statement comes without its proof"))?;
            if last.is_some_and(|last| inclusion.index <= last) {
                return Err(Error::Proof("statements are not in the order of the log"));
            }
            last = Some(inclusion.index);
            let leaf = Leaf::from_bytes(logged.entry)?;
            checkpoint.includes(&leaf.hash(), inclusion.index, &inclusion.path)?;
            let (federation, governors) = (self.federation.as_str(), &self.governance);
            let applied = leaf.entry().and_then(|entry| {
                match entry.event {
                    Event::Statement(statement) => {
                        let verified = governance::verify(&statement, federation, governors)?;
                        state.apply(verified, inclusion.index, entry.sequenced_at);
                    }
                    Event::Ceremony(concluded) => {
                        let verified = Conclusion::verify(&concluded, federation, governors)?;
                        state.conclude(verified, inclusion.index);
                    }
                    Event::RecordChange(_)
                    | Event::EvaluationTotals(_)
                    | Event::MapRoot(_)
                    | Event::Channel(_)
                    | Event::Manifest(_) => {
                        return Err(Error::Proof("an entry given for a statement is none"));
                    }
                }
                Ok(())
            });
            match applied {
                Ok(()) | Err(Error::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((checkpoint, state))
    }
}

impl Trust {
    /// Verifies channels, each included in the checkpoint, with the entries that hold them. Whether
    /// their agents were listed, who logged them judged.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn verify_channels(
        &self,
        response: wire::ListChannelsResponse,
    ) -> Result<(VerifiedCheckpoint, Vec<(u64, Channel)>), Error> {
        let checkpoint = self.log.verify(&response.checkpoint)?;
        let mut channels: Vec<(u64, Channel)> = Vec::with_capacity(response.channels.len());
        for logged in response.channels {
            let inclusion = logged.inclusion.ok_or(Error::Proof("a channel comes without its proof"))?;
            if channels.last().is_some_and(|(last, _)| inclusion.index <= *last) {
                return Err(Error::Proof("channels are not in the order of the log"));
            }
            let leaf = Leaf::from_bytes(logged.entry)?;
            checkpoint.includes(&leaf.hash(), inclusion.index, &inclusion.path)?;
            let Event::Channel(signed) = leaf.entry()?.event else {
                return Err(Error::Proof("an entry given for a channel is none"));
            };
            channels.push((inclusion.index, SignedChannel::try_from(signed)?.channel().clone()));
        }
        Ok((checkpoint, channels))
    }
}

/// A record operation that the directory says it logged. The map proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Index of the entry: the next change names it as the previous one.
    pub index: u64,
    /// Whether it is a re-enrolment that waits for the owner's veto.
    pub pending: bool,
}

/// Reads the opened answer to a record operation.
///
/// # Errors
/// The directory's refusal, or it says nothing.
pub fn read_publication(result: wire::RecordOperationResult) -> Result<Publication, Refusal> {
    use wire::record_operation_result::Result as Outcome;
    match result.result {
        Some(Outcome::Logged(logged)) => Ok(Publication { index: logged.index, pending: logged.pending }),
        Some(Outcome::Refusal(refusal)) => Err(Refusal::new(
            Reason::from_wire(&refusal.reason).unwrap_or(Reason::DirectoryMisbehaved),
            refusal.message.chars().take(500).collect::<String>(),
        )),
        None => Err(Refusal::new(Reason::DirectoryMisbehaved, "the directory's answer is empty")),
    }
}

#[cfg(test)]
mod tests;
