//! The enrolment authority of a local federation: an agent of the first
//! administration. Residents get their codes here; in earnest, by letter.

use super::federation::{LocalFederation, name};
use super::layout::{ADMINISTRATIONS, AUTHORITY, AUTHORITY_KEY};
use crate::Failure;
use chancery_directory::authority;
use chancery_pki_core::Party;
use chancery_sdk::authority::{Authority, Codes, serve};
use chancery_sdk::endpoint::{AuthorityAddress, Endpoint, EndpointConfig};
use chancery_types::{Clock, Entropy, Identifier};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where residents enrol.
pub(crate) struct Registry {
    /// Where its service is.
    pub(crate) address: AuthorityAddress,
    codes: Arc<Codes>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Registry {
    /// Starts the authority; the first administration's node runs.
    ///
    /// # Errors
    /// A port is taken, or the node refuses.
    pub(crate) async fn start(
        federation: &mut LocalFederation,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        shutdown: CancellationToken,
    ) -> Result<Self, Failure> {
        let [administration, ..] = ADMINISTRATIONS;
        let folder = federation.layout.path("authority");
        chancery_kit::party::make_folder(&folder)?;
        let party = Party::Agent { administration: name(administration)?, name: name(AUTHORITY)? };
        let credentials = federation.enrol("authority/identity", party).await?;
        let config = EndpointConfig {
            store: folder.join("endpoint.db"),
            node: name(administration)?,
            node_endpoint: federation.layout.address(&format!("node-{administration}")).to_string(),
            federation: federation.bundle.clone(),
            credentials: Arc::clone(&credentials),
            stock: 0,
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
        };
        let endpoint = Endpoint::open(config).await?;
        endpoint.register().await?;
        let signer = authority::open(name(AUTHORITY)?, &federation.layout.path(AUTHORITY_KEY), &*entropy)?;
        let codes = Arc::new(Codes::open(&folder.join("codes.db"))?);
        let listener = federation.listen("authority").await?;
        let (running, stop) = (endpoint.clone(), shutdown.clone());
        federation.spawn(async move {
            running.run(stop).await;
            Ok(())
        });
        let serving = Authority { endpoint, signer, codes: Arc::clone(&codes) };
        federation.spawn(async move { Ok(serve(serving, listener, credentials, shutdown).await?) });
        let address = AuthorityAddress {
            authority: AUTHORITY.to_owned(),
            administration: administration.to_owned(),
            endpoint: federation.layout.address("authority").to_string(),
        };
        Ok(Self { address, codes, clock, entropy })
    }

    /// A code for a resident.
    ///
    /// # Errors
    /// The authority's file.
    pub(crate) async fn invite(&self, identifier: &Identifier) -> Result<String, Failure> {
        Ok(self.codes.issue(identifier.clone(), &*self.entropy, self.clock.now()).await?)
    }
}
