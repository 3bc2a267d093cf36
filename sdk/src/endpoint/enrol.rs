//! Enrolling with an authority, and with its receipt again when handles are made anew.

use super::{Endpoint, Inner};
use crate::error::EndpointError;
use crate::identity::{self, OwnKey};
use crate::keepsake;
use crate::own_record::Words;
use crate::resolve::Epoch;
use chancery_directory_core::attestation::SignedAttestation;
use chancery_directory_core::client::Publication;
use chancery_directory_core::enrolment::{self, Claim};
use chancery_directory_core::{AccountKey, EvaluatorEpoch};
use chancery_kit::status::call_within;
use chancery_kit::tls::connect_lazy;
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::enrolment_service_client::EnrolmentServiceClient;
use chancery_types::{Identifier, NodeId, Reason, Refusal};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

const ENROLMENT: &str = "enrolment";
/// Longest that an authority may take: it asks evaluators.
const DEADLINE: Duration = Duration::from_secs(30);
const UNREACHABLE: &str = "the enrolment authority does not answer";

/// Where an enrolment authority is found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuthorityAddress {
    /// Its id in the log, and its agent's name.
    pub authority: String,
    /// Whose agent it is.
    pub administration: String,
    /// `host:port`.
    pub endpoint: String,
}

/// What is kept of an enrolment (CBOR).
#[derive(Serialize, Deserialize)]
struct Kept {
    address: AuthorityAddress,
    receipt: Vec<u8>,
}

impl Endpoint {
    /// Enrols with an authority by a code that it gave out, and publishes the record.
    /// Repeatable: a code is good again for the same account.
    ///
    /// # Errors
    /// ENROLMENT_REFUSED; the directory's refusal, or who cannot be reached.
    pub async fn enrol(
        &self,
        address: &AuthorityAddress,
        identifier: &Identifier,
        code: &str,
    ) -> Result<Publication, Refusal> {
        let inner = &self.0;
        let authority: NodeId = address.authority.parse()?;
        let account = inner.call(|tx| identity::key(tx, OwnKey::Account)).await?;
        let known = self.key_epoch().await?.unwrap_or_default();
        let request = Claim::sign(&authority, identifier, (code, known), &account);
        let call = async { inner.authority(address)?.enrol(request).await };
        let answer = call_within(DEADLINE, call, Reason::PeerUnreachable, UNREACHABLE).await?;
        let (Some(attestation), Some(receipt)) = (answer.attestation, answer.receipt) else {
            return Err(empty());
        };
        let kept = Kept { address: address.clone(), receipt: receipt.encode_to_vec() };
        inner.call(move |tx| keepsake::put(tx, ENROLMENT, &write(&kept)?)).await?;
        inner.publish(identifier, attestation).await
    }

    /// Whose record stands for an identifier in a key epoch, and whether it is closed.
    ///
    /// # Errors
    /// ENROLMENT_REFUSED: the epoch has ended. Otherwise who cannot be reached.
    pub(crate) async fn holder(
        &self,
        identifier: &Identifier,
        key_epoch: u32,
    ) -> Result<Option<(AccountKey, bool)>, Refusal> {
        let inner = &self.0;
        let state = inner.view.state().await?;
        let is = |epoch: Option<&EvaluatorEpoch>| epoch.is_some_and(|epoch| epoch.key_epoch == key_epoch);
        let epoch = if is(state.evaluators()) {
            Epoch::Current
        } else if is(state.former_evaluators()) {
            Epoch::Former
        } else {
            let message = "the key epoch of the receipt has ended: enrol again";
            return Err(Refusal::new(Reason::EnrolmentRefused, message));
        };
        let (_, keyed) = inner.resolver.keyed(std::slice::from_ref(identifier), epoch).await?;
        let Some((handle, _)) = keyed.first() else { return Ok(None) };
        let own = inner.view.look_up(&[*handle], 0).await?.own(handle, &state)?;
        Ok(own.map(|own| (*own.record.account_key(), own.record.is_closed())))
    }

    /// Puts the record under the handle of the current key epoch, with a new attestation
    /// against the receipt, if that was not done and the record is still this account's. Running
    /// endpoints do so by themselves, within some hours.
    ///
    /// # Errors
    /// The authority's or the directory's refusal, or who cannot be reached.
    pub async fn migrate_record(&self) -> Result<(), Refusal> {
        self.0.migrate().await
    }
}

impl Inner {
    pub(super) async fn migrate(&self) -> Result<(), Refusal> {
        let Some(kept) = self.call(|tx| keepsake::get(tx, ENROLMENT)).await? else { return Ok(()) };
        // The record names the home: that is settled first.
        let _one_at_a_time = self.moving.lock().await;
        if self.is_moving().await? {
            return Ok(());
        }
        let kept: Kept = ciborium::from_reader(&*kept)
            .map_err(|_| Refusal::new(Reason::Internal, "the kept enrolment does not parse"))?;
        let state = self.view.state().await?;
        let Some(current) = state.evaluators().map(|epoch| epoch.key_epoch) else { return Ok(()) };
        if self.record.last().await?.is_some_and(|(epoch, is_closed)| epoch == current || is_closed) {
            return Ok(());
        }
        let receipt = wire::SignedEnrolmentReceipt::decode(kept.receipt.as_slice())
            .map_err(|_| Refusal::new(Reason::Internal, "the kept receipt does not parse"))?;
        let identifier = enrolment::identifier_of(&receipt)?;
        let account = self.call(|tx| identity::key(tx, OwnKey::Account)).await?;
        let request = enrolment::renewal(receipt, current, &account);
        let call = async { self.authority(&kept.address)?.renew(request).await };
        let answer = call_within(DEADLINE, call, Reason::PeerUnreachable, UNREACHABLE).await?;
        let (Some(attestation), Some(receipt)) = (answer.attestation, answer.receipt) else {
            return Err(empty());
        };
        let kept = Kept { receipt: receipt.encode_to_vec(), ..kept };
        self.call(move |tx| keepsake::put(tx, ENROLMENT, &write(&kept)?)).await?;
        self.publish(&identifier, attestation).await.map(drop)
    }

    /// Under the handle that was attested.
    async fn publish(
        &self,
        identifier: &Identifier,
        attestation: wire::SignedAttestation,
    ) -> Result<Publication, Refusal> {
        let attested = SignedAttestation::try_from(attestation.clone())?.claim().key_epoch;
        let state = self.view.state().await?;
        if state.evaluators().is_none_or(|current| current.key_epoch < attested) {
            self.view.refresh().await?;
        }
        let keyed = self.keyed(identifier).await?;
        self.record.publish(keyed, Words { attestation, second: None }).await
    }

    fn authority(
        &self,
        address: &AuthorityAddress,
    ) -> Result<EnrolmentServiceClient<Channel>, tonic::Status> {
        let party = || {
            let administration = address.administration.parse()?;
            Ok::<_, Refusal>(Party::Agent { administration, name: address.authority.parse()? })
        };
        let connect = || {
            let credentials = Arc::clone(&self.record.credentials);
            Ok::<_, Refusal>(connect_lazy(&address.endpoint, party()?, credentials)?.0)
        };
        let channel = connect().map_err(|refusal| chancery_kit::serve::refused(&refusal))?;
        Ok(EnrolmentServiceClient::new(channel))
    }
}

fn write(kept: &Kept) -> Result<Vec<u8>, EndpointError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(kept, &mut bytes).map_err(EndpointError::mls("write an enrolment"))?;
    Ok(bytes)
}

fn empty() -> Refusal {
    Refusal::new(Reason::PeerMisbehaved, "the enrolment authority's answer is empty")
}
