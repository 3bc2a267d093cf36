//! What those who look things up are shown: a directory's own, or a mirror's.

use crate::sequencer::Sequencer;
use chancery_directory_core::FederationState;
use chancery_directory_core::channels::Channels;
use chancery_directory_core::map::Map;
use chancery_types::{Clock, Reason, Refusal, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Age of a root from which a lookup has the next one logged.
const ROOT_AGE: Duration = Duration::from_mins(30);

/// The map as a logged root has it.
#[derive(Clone)]
pub(crate) struct RootedMap {
    pub(crate) map: Map,
    /// What stands for the channels in it.
    pub(crate) channels: Channels,
    /// Entry of the root.
    pub(crate) index: u64,
    /// When that was sequenced.
    pub(crate) sequenced_at: Timestamp,
}

impl Default for RootedMap {
    /// Of a log without a root.
    fn default() -> Self {
        let (map, channels) = (Map::default(), Channels::default());
        Self { map, channels, index: 0, sequenced_at: Timestamp::from_millis(i64::MIN) }
    }
}

/// Where both are shown from.
#[derive(Default)]
pub(crate) struct Showing {
    pub(crate) state: watch::Sender<Arc<FederationState>>,
    pub(crate) map: watch::Sender<Arc<RootedMap>>,
}

/// What is shown. Cheap to clone.
#[derive(Clone)]
pub(crate) struct View {
    state: watch::Receiver<Arc<FederationState>>,
    map: watch::Receiver<Arc<RootedMap>>,
    /// A directory can log another root.
    sequencer: Option<(Sequencer, Arc<dyn Clock>)>,
}

impl View {
    /// Watches what is shown.
    pub(crate) fn watching(showing: &Showing) -> Self {
        Self { state: showing.state.subscribe(), map: showing.map.subscribe(), sequencer: None }
    }

    /// With the directory's own sequencer behind it.
    pub(crate) fn with_sequencer(self, sequencer: Sequencer, clock: Arc<dyn Clock>) -> Self {
        Self { sequencer: Some((sequencer, clock)), ..self }
    }

    /// What is in force.
    pub(crate) fn state(&self) -> Arc<FederationState> {
        self.state.borrow().clone()
    }

    /// The map with its latest root. A directory's is not old: it logs one first if
    /// need be.
    pub(crate) async fn map(&self) -> Result<Arc<RootedMap>, Refusal> {
        if let Some((sequencer, clock)) = &self.sequencer
            && clock.now().since(self.map.borrow().sequenced_at) >= ROOT_AGE
        {
            sequencer.root().await?;
        }
        let map = self.map.borrow().clone();
        if map.sequenced_at == RootedMap::default().sequenced_at {
            let message = "nothing is mirrored yet; try again, or ask the directory";
            return Err(Refusal::new(Reason::DirectoryUnreachable, message));
        }
        Ok(map)
    }
}
