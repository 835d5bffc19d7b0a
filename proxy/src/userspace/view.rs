//! A listener thread's view of the snapshot: who answers at a frontend, remembered until the snapshot changes.
//!
//! Each thread owns one. A lookup costs a hash of the frontend; only the first after a change walks the snapshot.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use sheave_model::{AppProtocol, Frontend, FrontendKind, Service, ServiceKey, Snapshot};
use tokio::sync::watch;

use crate::metrics::{PortCounters, ServiceMetrics};

/// Frontends remembered; when more are used between two changes, they are forgotten and looked up again.
const MOST: usize = 16_384;

/// What a frontend leads to, in one snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The Service.
    pub(crate) service: ServiceKey,
    /// Which of its addresses the frontend is.
    pub(crate) kind: FrontendKind,
    /// How bytes are carried.
    pub(crate) app: AppProtocol,
    /// Those that take new connections, in order; may be empty.
    pub(crate) backends: Arc<[SocketAddr]>,
    /// Those whose flows stay with them, in order: the ready ones, and those that still serve while they end.
    pub(crate) standing: Arc<[SocketAddr]>,
    /// The Service port's counters.
    pub(crate) counters: Arc<PortCounters>,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct View {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    services: Arc<ServiceMetrics>,
    snapshot: Arc<Snapshot>,
    targets: HashMap<Frontend, Option<Rc<Target>>>,
}

impl View {
    /// A view of the newest snapshot.
    pub(crate) fn new(mut snapshots: watch::Receiver<Arc<Snapshot>>, services: Arc<ServiceMetrics>) -> Self {
        let snapshot = snapshots.borrow_and_update().clone();
        Self { snapshots, services, snapshot, targets: HashMap::new() }
    }

    /// The newest snapshot. Free where nothing changed.
    pub(crate) fn snapshot(&mut self) -> &Arc<Snapshot> {
        // An error says that nobody will send another: the last one goes on being served.
        if self.snapshots.has_changed().unwrap_or(false) {
            self.snapshot = self.snapshots.borrow_and_update().clone();
            self.targets.clear();
        }
        &self.snapshot
    }

    /// Who answers at a frontend in the newest snapshot; `None` where nobody does.
    pub(crate) fn target(&mut self, frontend: &Frontend) -> Option<Rc<Target>> {
        self.snapshot();
        if let Some(known) = self.targets.get(frontend) {
            return known.clone();
        }
        let found = self.look_up(frontend).map(Rc::new);
        if self.targets.len() >= MOST {
            self.targets.clear();
        }
        self.targets.insert(*frontend, found.clone());
        found
    }

    fn look_up(&self, frontend: &Frontend) -> Option<Target> {
        let (route, state) = self.snapshot.lookup(frontend)?;
        let port = state.service.ports.get(route.port)?;
        let backends = state.backends.get(route.port)?.of(frontend.address.ip());
        let backends = if backends.is_sorted() { backends.clone() } else { sorted(backends.to_vec()) };
        let standing = standing(&state.service, route.port, &backends, frontend.address.is_ipv4());
        Some(Target {
            service: route.service.clone(),
            kind: route.kind,
            app: port.app,
            backends,
            standing,
            counters: self.services.of(&route.service, &port.name, port.protocol),
        })
    }

    /// Whether the backend is to see the client's own address.
    pub(crate) fn keeps_client(&mut self, kind: FrontendKind, client: IpAddr, backend: SocketAddr) -> bool {
        let node = self.snapshot().node.as_ref().map(|(_, facts)| &**facts);
        super::source::keeps_client(kind, client, backend, node)
    }
}

/// A controller that leaves endpoints unsorted must not make sessions lose theirs.
fn sorted(mut backends: Vec<SocketAddr>) -> Arc<[SocketAddr]> {
    backends.sort_unstable();
    backends.into()
}

/// The endpoints of a Service's port that answer, whether or not they are to get anything new.
fn standing(service: &Service, port: usize, backends: &Arc<[SocketAddr]>, v4: bool) -> Arc<[SocketAddr]> {
    let answers = service.endpoints.iter().filter(|e| e.address.is_ipv4() == v4 && (e.ready || e.serving));
    let answers = sorted(answers.filter_map(|e| e.socket(port)).collect());
    if answers == *backends { backends.clone() } else { answers }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userspace::testing::{Build, delta, service};
    use sheave_model::{Protocol, Store};

    #[test]
    fn a_view_follows_the_snapshot() {
        let mut store = Store::default();
        let (sender, receiver) = watch::channel(Arc::new(store.snapshot().clone()));
        let mut view = View::new(receiver, ServiceMetrics::new(8));
        let frontend = Frontend::new("10.96.0.1".parse().unwrap(), 80, Protocol::Tcp);
        assert!(view.target(&frontend).is_none());
        let a = service("a", "10.96.0.1").port(80).ready("10.1.0.1", &[8080]);
        sender.send(Arc::new(store.apply(delta(vec![a.clone()])).clone())).unwrap();
        assert_eq!(&*view.target(&frontend).unwrap().backends, ["10.1.0.1:8080".parse().unwrap()]);
        let more = a.ready("10.1.0.2", &[9090]);
        sender.send(Arc::new(store.apply(delta(vec![more])).clone())).unwrap();
        assert_eq!(view.target(&frontend).unwrap().backends.len(), 2);
        let mut ending = service("a", "10.96.0.1").port(80).ready("10.1.0.2", &[8080]).ready("10.1.0.1", &[8080]);
        (ending.endpoints[1].ready, ending.endpoints[1].terminating) = (false, true);
        sender.send(Arc::new(store.apply(delta(vec![ending])).clone())).unwrap();
        let target = view.target(&frontend).unwrap();
        assert_eq!(&*target.backends, ["10.1.0.2:8080".parse().unwrap()]);
        assert_eq!(&*target.standing, ["10.1.0.1:8080", "10.1.0.2:8080"].map(|a| a.parse().unwrap()));
        drop(sender);
        assert_eq!(view.target(&frontend).unwrap().standing.len(), 2, "the last snapshot is served for ever");
    }
}
