//! What happens between a request's arrival and its backend, as tower layers: admission, then choice.
//!
//! [`Stack`] is boxed where it is built: unboxed towers of layers cost minutes of build time and name nobody reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use sheave_model::{Frontend, Snapshot};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _};

/// Asks for a backend.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// What the client connected to.
    pub(super) frontend: Frontend,
    /// Backends that this request has tried in vain.
    pub(super) tried: Vec<SocketAddr>,
}

/// A request that may go to `backend`; it counts as in flight until this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Where to.
    pub(super) backend: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

/// Why a request gets no backend. Each is a 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Denied {
    /// The frontend is gone, or nothing behind it takes requests.
    #[error("no endpoint takes requests")]
    NoEndpoint,
    /// All of them were tried.
    #[error("no endpoint could be reached")]
    AllTried,
    /// Too many requests are in flight.
    #[error("too many requests in flight")]
    Busy,
}

/// Ask in, backend out.
pub(super) type Stack = BoxCloneSyncService<Ask, Admitted, Denied>;

/// The layers, outermost first.
pub(super) fn stack(requests: usize, snapshots: watch::Receiver<Arc<Snapshot>>) -> Stack {
    let admission = AdmissionLayer { permits: Arc::new(Semaphore::new(requests)) };
    BoxCloneSyncService::new(ServiceBuilder::new().layer(admission).service(Choice { snapshots }))
}

/// Runs one ask through the layers.
pub(super) async fn ask(stack: &Stack, ask: Ask) -> Result<Admitted, Denied> {
    stack.clone().oneshot(ask).await
}

/// Bounds the requests in flight; a full house answers at once instead of queueing without end.
#[derive(Clone)]
struct AdmissionLayer {
    permits: Arc<Semaphore>,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { permits: self.permits.clone(), inner }
    }
}

#[derive(Clone)]
struct Admission<S> {
    permits: Arc<Semaphore>,
    inner: S,
}

impl<S> Service<Ask> for Admission<S>
where
    S: Service<Ask, Response = SocketAddr, Error = Denied> + Send,
    S::Future: Send + 'static,
{
    type Response = Admitted;
    type Error = Denied;
    type Future = BoxFuture<'static, Result<Admitted, Denied>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Denied>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Denied::Busy);
        let backend = self.inner.call(ask);
        Box::pin(async move { Ok(Admitted { _permit: permit?, backend: backend.await? }) })
    }
}

/// Picks one of the frontend's backends at random, none twice for one request.
#[derive(Clone)]
struct Choice {
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Service<Ask> for Choice {
    type Response = SocketAddr;
    type Error = Denied;
    type Future = std::future::Ready<Result<SocketAddr, Denied>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Denied>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        let backends = self.snapshots.borrow().backends(&ask.frontend).cloned();
        std::future::ready(choose(backends.as_deref().unwrap_or_default(), &ask.tried, rand::random()))
    }
}

fn choose(backends: &[SocketAddr], tried: &[SocketAddr], random: u32) -> Result<SocketAddr, Denied> {
    if backends.is_empty() {
        return Err(Denied::NoEndpoint);
    }
    let left = || backends.iter().filter(|backend| !tried.contains(backend));
    match left().count() {
        0 => Err(Denied::AllTried),
        count => Ok(*left().nth(random as usize % count).expect("the index is below the count of the same iterator")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    #[test]
    fn each_backend_is_tried_once_and_then_none_is_left() {
        let backends = [socket(1), socket(2), socket(3)];
        let mut tried = Vec::new();
        for random in [7, 0, 5] {
            let next = choose(&backends, &tried, random).unwrap();
            assert!(!tried.contains(&next));
            tried.push(next);
        }
        assert_eq!(choose(&backends, &tried, 0), Err(Denied::AllTried));
        assert_eq!(choose(&[], &[], 0), Err(Denied::NoEndpoint));
    }

    #[tokio::test]
    async fn requests_beyond_the_bound_are_denied_until_one_ends() {
        let choice = tower::service_fn(|_: Ask| std::future::ready(Ok(socket(1))));
        let layer = AdmissionLayer { permits: Arc::new(Semaphore::new(1)) };
        let stack = BoxCloneSyncService::new(layer.layer(choice));
        let request =
            Ask { frontend: Frontend { address: socket(9), protocol: sheave_model::Protocol::Tcp }, tried: Vec::new() };
        let first = ask(&stack, request.clone()).await.unwrap();
        assert_eq!(ask(&stack, request.clone()).await.unwrap_err(), Denied::Busy);
        drop(first);
        assert_eq!(ask(&stack, request).await.unwrap().backend, socket(1));
    }
}
