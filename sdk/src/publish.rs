//! Publishing this account's own record, HPKE-sealed to the directory through
//! the home node. What is being published is kept until the directory has
//! answered, so that a repetition asks for the same.

use crate::directory_view::DirectoryView;
use crate::error::EndpointError;
use crate::identity::{self, OwnKey};
use crate::keepsake;
use crate::node_client::NodeClient;
use crate::resolve::Keyed;
use crate::store::{EndpointStore, Tx};
use chancery_directory_core::record::RecordDraft;
use chancery_directory_core::{Address, CredentialKey, operation};
use chancery_proto::directory::v1::{RecordOperation, SignedAttestation, SignedRecord};
use chancery_types::{Reason, Refusal};
use prost::Message as _;

const PENDING: &str = "record operation";
const STANDING: &str = "own record";

/// Puts the record of the handle, or its next version. Gives the index of its
/// entry in the log.
pub(crate) async fn publish(
    client: &NodeClient,
    store: &EndpointStore,
    view: &DirectoryView,
    keyed: Keyed,
    attestation: SignedAttestation,
) -> Result<u64, Refusal> {
    let state = view.state().await?;
    let directory = match state.directory() {
        Some(directory) => directory.clone(),
        None => view.refresh().await?.directory().cloned().ok_or_else(|| {
            Refusal::new(Reason::DirectoryUnreachable, "the log does not name the directory's keys yet")
        })?,
    };
    let call = move |tx: &mut Tx<'_>| operation_to_send(tx, &keyed, attestation);
    let operation = store.call(call).await.map_err(Refusal::from)?;
    let record = operation.record.clone().unwrap_or_default();
    let (sealed, answer) = operation::seal(&operation, &directory.hpke_public_key)?;
    let response = client.publish(&sealed).await?;
    let result = answer.open(&response)?;
    match view.trust().verify_publication(result, &record) {
        Ok(publication) => {
            view.see(publication.checkpoint.clone()).await?;
            let index = publication.index;
            store.call(move |tx| stand(tx, &record, index)).await.map_err(Refusal::from)?;
            Ok(index)
        }
        Err(refusal) => {
            // Decided: the next attempt is another operation.
            store.call(forget).await.map_err(Refusal::from)?;
            Err(refusal)
        }
    }
}

fn operation_to_send(
    tx: &mut Tx<'_>,
    (handle, record_key): &Keyed,
    attestation: SignedAttestation,
) -> Result<RecordOperation, EndpointError> {
    if let Some(pending) = keepsake::get(tx, PENDING)? {
        return RecordOperation::decode(&*pending).map_err(EndpointError::mls("read a record operation"));
    }
    let identity = identity::identity(tx)?;
    let account = identity::key(tx, OwnKey::Account)?;
    let standing = standing(tx)?.filter(|(known, ..)| known == handle.as_bytes());
    let (version, previous_index) = match standing {
        Some((_, version, index)) => (version + 1, Some(index)),
        None => (1, None),
    };
    let address = Address {
        node: identity.node,
        alias: identity.alias,
        credential_key: CredentialKey::try_from(identity.credential_key.as_slice()).map_err(Refusal::from)?,
    };
    let sealed_part = address.seal(record_key, handle, version, tx.entropy()).map_err(Refusal::from)?;
    let record = RecordDraft {
        handle: *handle,
        version,
        previous_index,
        attestation,
        sealed_part,
        changed_at: tx.now(),
    }
    .sign(&account);
    let request_id: [u8; 16] = tx.entropy().array();
    let operation = RecordOperation { request_id: request_id.to_vec().into(), record: Some(record) };
    keepsake::put(tx, PENDING, &operation.encode_to_vec())?;
    Ok(operation)
}

/// Handle, version and index of the record that stands.
fn standing(tx: &Tx<'_>) -> Result<Option<([u8; 32], u64, u64)>, EndpointError> {
    let Some(bytes) = keepsake::get(tx, STANDING)? else { return Ok(None) };
    let mut parts = bytes.chunks(8);
    let mut number = || {
        let bytes: [u8; 8] = parts.next()?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    let numbers = number().zip(number());
    let handle = bytes.get(16..).and_then(|handle| handle.try_into().ok());
    Ok(numbers.zip(handle).map(|((version, index), handle)| (handle, version, index)))
}

fn stand(tx: &mut Tx<'_>, record: &SignedRecord, index: u64) -> Result<(), EndpointError> {
    let record =
        chancery_directory_core::record::SignedRecord::try_from(record.clone()).map_err(Refusal::from)?;
    let bytes = [record.version().to_be_bytes().as_slice(), &index.to_be_bytes(), record.handle().as_bytes()]
        .concat();
    keepsake::put(tx, STANDING, &bytes)?;
    forget(tx)
}

fn forget(tx: &mut Tx<'_>) -> Result<(), EndpointError> {
    tx.sql().execute("DELETE FROM keepsakes WHERE name = ?1", [PENDING])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Device;
    use chancery_directory_core::RecordKey;
    use chancery_types::Handle;

    #[tokio::test]
    async fn a_repetition_asks_for_the_same_and_the_next_version_follows() {
        let (device, _) = Device::person(1).await;
        let keyed = (Handle::from_bytes([1; 32]), RecordKey::from_bytes([2; 32]));
        let attestation = SignedAttestation::default();
        let make = async || {
            let (keyed, attestation) = (keyed.clone(), attestation.clone());
            device.run(move |tx| operation_to_send(tx, &keyed, attestation)).await
        };
        let first = make().await;
        assert!(make().await.encode_to_vec() == first.encode_to_vec());
        let bytes = [7_u64.to_be_bytes().as_slice(), &41_u64.to_be_bytes(), &[1; 32]].concat();
        device.run(move |tx| keepsake::put(tx, STANDING, &bytes)).await;
        device.run(forget).await;
        let next = make().await.record.unwrap();
        let record = chancery_proto::directory::v1::Record::decode(next.record).unwrap();
        assert_eq!((record.version, record.previous_index), (8, Some(41)));
    }
}
