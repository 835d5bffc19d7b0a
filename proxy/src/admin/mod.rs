//! What an operator and a scraper see. On TCP: metrics and health, nothing else. On a unix socket (0600): /debug, and the
//! one thing that can be changed, the log level. What operators ask (`answers`) comes by the socket or by a controller.

mod answers;
mod debug;
mod http;
mod pages;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use sheave_model::Snapshot;
use tokio::sync::watch;

use crate::config::Config;
use crate::health::Freshness;
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::status::Status;
use crate::supervise::Shutdown;

pub(crate) use answers::{AnswerParts, answer};
pub(crate) use http::{serve_tcp, serve_unix};

/// Brings numbers that live elsewhere, such as in kernel maps, into their metrics.
pub(crate) type Refresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// What pages are made of. Clones share it.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Metrics,
    pub(crate) status: Status,
    pub(crate) freshness: Freshness,
    pub(crate) log_level: LogLevel,
    pub(crate) shutdown: Shutdown,
    parts: Arc<std::sync::OnceLock<Parts>>,
}

/// What exists only once this process owns the node.
struct Parts {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    refresh: Vec<Refresh>,
}

/// Where a listener is and what it serves.
#[derive(Clone, Debug)]
pub(crate) enum Listener {
    /// /metrics, /healthz, /livez, /readyz.
    Admin(SocketAddr),
    /// /healthz and /livez, as kube-proxy has them.
    Health(SocketAddr),
    /// All of that, /debug and the log level.
    Socket(PathBuf),
}

impl Admin {
    /// Before this process owns the node.
    pub(crate) fn new(
        config: Arc<Config>,
        metrics: Metrics,
        status: Status,
        log_level: LogLevel,
        shutdown: Shutdown,
    ) -> Self {
        let (freshness, parts) = (Freshness::default(), Arc::default());
        Self { config, metrics, status, freshness, log_level, shutdown, parts }
    }

    /// This process owns the node: from here on there are snapshots. Does nothing the second time.
    pub(crate) fn own(&self, snapshots: watch::Receiver<Arc<Snapshot>>, refresh: Vec<Refresh>) {
        // A second call could only come from a mistake in main, and the first parts are the true ones.
        let _ = self.parts.set(Parts { snapshots, refresh });
    }

    /// Brings the metrics up to date.
    async fn refresh(&self) {
        if let Some(parts) = self.parts.get() {
            self.metrics.services.retain(&self.snapshot());
            join_all(parts.refresh.iter().map(|refresh| refresh())).await;
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.parts.get().map(|parts| parts.snapshots.borrow().clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, tests::parse};
    use crate::store::tests::delta;
    use http_body_util::BodyExt;
    use sheave_model::{Service, Store};

    pub(super) fn admin() -> Admin {
        let Command::Run(run) = parse(&["--controller=unix:/x"]).unwrap().command else { panic!("not run") };
        let config = Arc::new(Config::try_from(*run).unwrap());
        Admin::new(config, Metrics::new().unwrap(), Status::default(), LogLevel::detached(), Shutdown::new())
    }

    /// As text; what `/operations` answers is none.
    pub(super) async fn body(response: hyper::Response<pages::Body>) -> String {
        String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned()
    }

    pub(super) fn snapshots(services: Vec<Service>) -> watch::Receiver<Arc<Snapshot>> {
        let mut store = Store::default();
        store.apply(delta(services));
        watch::Sender::new(Arc::new(store.snapshot().clone())).subscribe()
    }
}
