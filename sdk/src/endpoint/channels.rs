//! Broadcast channels: published by agents, found by everybody.

use super::Endpoint;
use crate::broadcast::audience;
use crate::identity::{self, OwnKey};
use chancery_directory_core::channel::Channel;
use chancery_directory_core::lookup::VerifiedHead;
use chancery_directory_core::manifest::{Manifest, VerifiedManifest};
use chancery_proto::directory::v1 as directory;
use chancery_types::{ChannelId, NodeId, Refusal};

impl Endpoint {
    /// Channels as their owners published them last, of all administrations or of one. Each is
    /// in the log; that none is left out nobody can tell. One that was published a moment ago is not
    /// listed before the map's next root.
    ///
    /// # Errors
    /// Who cannot be reached, or what does not hold.
    pub async fn channels(&self, administration: Option<&NodeId>) -> Result<Vec<Channel>, Refusal> {
        self.0.view.channels(administration).await
    }

    /// A channel and its latest broadcast, by the map; behind entry `after` of the log.
    ///
    /// # Errors
    /// Who cannot be reached, or what does not hold.
    pub async fn channel(&self, id: &ChannelId, after: u64) -> Result<Option<VerifiedHead>, Refusal> {
        self.0.view.channel(id, after).await
    }

    /// Publishes a channel, or its next version, as the agent that it names; gives the index of
    /// its entry. The same version again gets the same entry while it stands.
    ///
    /// # Errors
    /// The directory's refusal, or who cannot be reached.
    pub async fn publish_channel(&self, channel: &Channel) -> Result<u64, Refusal> {
        let key = self.0.call(|tx| identity::key(tx, OwnKey::Credential)).await?;
        let (signed, id) = (channel.sign(&key), channel.id);
        let request = directory::SubmitChannelRequest { channel: Some(signed.clone()) };
        let index = self.0.client.submit_channel(&request).await?.index;
        self.0.call(move |tx| audience::publish(tx, &signed, &id)).await?;
        Ok(index)
    }

    /// Has the directory log what this agent broadcasts. The same manifest again gets the same entry.
    ///
    /// # Errors
    /// CHANNEL_CONFLICT: another one of the sequence was logged. Otherwise the directory's
    /// refusal, who cannot be reached, or what does not hold.
    pub async fn log_manifest(&self, manifest: &Manifest) -> Result<VerifiedManifest, Refusal> {
        Ok(self.0.log_manifest(manifest).await?.0)
    }
}
