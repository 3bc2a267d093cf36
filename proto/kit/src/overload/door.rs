//! A tower layer in front of the services: a call that gets no place is answered
//! before anything of its message is read.

use crate::serve::refused;
use chancery_types::Refusal;
use futures::future::{BoxFuture, FutureExt as _};
use http::{Extensions, Request, Response};
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Layer, Service};

/// Decides who gets in.
pub trait Doorkeeper: Send + Sync + 'static {
    /// What a call holds until it is answered; of a stream of answers, until it begins.
    type Pass: Send + 'static;

    /// A pass for a call of this method, by whom the connection's extensions name.
    ///
    /// # Errors
    /// There is no place.
    fn admit(&self, method: &str, extensions: &Extensions) -> Result<Self::Pass, Refusal>;
}

/// The layer.
pub struct Door<D>(Arc<D>);

impl<D> Door<D> {
    /// A door with its keeper.
    pub fn new(keeper: D) -> Self {
        Self(Arc::new(keeper))
    }
}

impl<D> Clone for Door<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D, S> Layer<S> for Door<D> {
    type Service = Guarded<D, S>;

    fn layer(&self, behind: S) -> Guarded<D, S> {
        Guarded { keeper: Arc::clone(&self.0), behind }
    }
}

/// Services behind a door.
pub struct Guarded<D, S> {
    keeper: Arc<D>,
    behind: S,
}

impl<D, S: Clone> Clone for Guarded<D, S> {
    fn clone(&self) -> Self {
        Self { keeper: Arc::clone(&self.keeper), behind: self.behind.clone() }
    }
}

impl<D, S, B, R> Service<Request<B>> for Guarded<D, S>
where
    D: Doorkeeper,
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.behind.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.keeper.admit(request.uri().path(), request.extensions()) {
            Ok(pass) => {
                let answer = self.behind.call(request);
                async move {
                    let answer = answer.await;
                    drop(pass);
                    answer
                }
                .boxed()
            }
            Err(refusal) => futures::future::ready(Ok(refused(&refusal).into_http())).boxed(),
        }
    }
}
