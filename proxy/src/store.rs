//! The task that owns the model's `Store`: applies deltas in order and publishes one snapshot for all that were queued.
//!
//! Decoding is done by who sends; nothing here waits for anything but the next delta. Without a file nothing is published
//! before all of a controller's state has come: what an earlier process left in the kernel is better than a part of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use sheave_model::{
    Claim, ContentHash, Delta, NodeFacts, Resource, ResourceKey, ServiceKey, Snapshot, Store, Upsert, claims,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::Metrics;
use crate::status::{Source, Status};

/// Deltas that may be queued. The sender waits beyond, and with it the stream's flow control.
pub(crate) const QUEUE: usize = 16;
/// Frontends whose conflict has been told; beyond, conflicts are only counted, not told.
const TOLD_LIMIT: usize = 1024;

/// A delta on its way into the store.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) delta: Delta,
    /// Whether all of a controller's state has come with it.
    pub(crate) complete: bool,
    /// Hears the revision that has it.
    pub(crate) applied: oneshot::Sender<u64>,
}

/// What the task needs.
pub(crate) struct Options {
    /// This node's name.
    pub(crate) node: Arc<str>,
    /// Addresses on which NodePorts answer, in place of the Node's own; empty: the Node's.
    pub(crate) node_addresses: Vec<IpAddr>,
}

/// The store with who hears of it.
pub(crate) struct StoreTask {
    store: Store,
    options: Options,
    changes: mpsc::Receiver<Change>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    received: watch::Sender<Arc<Snapshot>>,
    complete: watch::Sender<bool>,
    /// Whether there was a file, or all of a controller's state has come.
    whole: bool,
    #[cfg(test)]
    published: usize,
    metrics: Metrics,
    status: Status,
    told: BTreeSet<(Claim, ServiceKey)>,
}

/// The ends that others hold.
#[derive(Clone)]
pub(crate) struct StoreHandle {
    pub(crate) changes: mpsc::Sender<Change>,
    /// What the data paths should have.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What has come, though it may only be a part yet: what Hello names.
    pub(crate) received: watch::Receiver<Arc<Snapshot>>,
    /// Whether all of a controller's state has come since this process started.
    pub(crate) complete: watch::Receiver<bool>,
}

impl StoreTask {
    /// A store that holds what the disk had.
    pub(crate) fn new(options: Options, disk: Option<Delta>, metrics: Metrics, status: Status) -> (Self, StoreHandle) {
        let (sender, changes) = mpsc::channel(QUEUE);
        let mut task = Self {
            store: Store::default(),
            options,
            changes,
            snapshots: watch::Sender::new(Arc::default()),
            received: watch::Sender::new(Arc::default()),
            complete: watch::Sender::new(false),
            whole: disk.is_some(),
            #[cfg(test)]
            published: 0,
            metrics,
            status,
            told: BTreeSet::new(),
        };
        if task.whole || !task.options.node_addresses.is_empty() {
            let mut first = disk.unwrap_or_default();
            if !task.options.node_addresses.is_empty()
                && !first.upserts.iter().any(|u| matches!(u.resource, Resource::Node(_)))
            {
                let node = NodeFacts { name: task.options.node.clone(), ..NodeFacts::default() };
                first.upserts.push(Upsert { hash: ContentHash(0), resource: Resource::Node(node) });
            }
            task.apply(first);
            task.publish();
        }
        let handle = StoreHandle {
            changes: sender,
            snapshots: task.snapshots.subscribe(),
            received: task.received.subscribe(),
            complete: task.complete.subscribe(),
        };
        (task, handle)
    }

    /// Applies until no sender is left.
    pub(crate) async fn run(mut self) {
        self.follow().await;
    }

    async fn follow(&mut self) {
        while let Some(first) = self.changes.recv().await {
            let mut complete = self.accept(first);
            // At most once round the queue, so that a flood can't hold back what is there.
            for _ in 0..QUEUE {
                let Ok(change) = self.changes.try_recv() else { break };
                complete |= self.accept(change);
            }
            self.whole |= complete;
            self.publish();
            // After the snapshot: who waits for completeness then reads a snapshot that is complete.
            if complete && !self.complete.send_replace(true) {
                let revision = self.store.snapshot().revision;
                self.status.update(|s| {
                    s.source = Source::Controller;
                    s.first.get_or_insert(revision);
                });
                self.metrics.snapshot_stale.set(0);
                tracing::info!(services = self.store.snapshot().services.len(), "the first complete update has come");
            }
        }
    }

    /// Applies one change; returns whether it completes a controller's state.
    fn accept(&mut self, change: Change) -> bool {
        let revision = self.apply(change.delta);
        // Nobody listens where the stream has ended meanwhile.
        let _ = change.applied.send(revision);
        change.complete
    }

    fn apply(&mut self, mut delta: Delta) -> u64 {
        if !self.options.node_addresses.is_empty() {
            delta.removals.retain(|key| !matches!(key, ResourceKey::Node(_)));
            for upsert in &mut delta.upserts {
                if let Resource::Node(node) = &mut upsert.resource {
                    node.addresses.clone_from(&self.options.node_addresses);
                }
            }
        }
        let changed = delta.upserts.iter().filter_map(|upsert| match &upsert.resource {
            Resource::Service(service) => Some(service.key.clone()),
            Resource::Node(_) | Resource::Cluster(_) => None,
        });
        let changed: Vec<ServiceKey> = changed.collect();
        let compat = self.metrics.compat.as_ref().map(|compat| (compat, compat.compare(self.store.snapshot(), &delta)));
        let revision = self.store.apply(delta).revision;
        if let Some((compat, found)) = compat {
            compat.changed(found, revision);
        }
        self.tell_conflicts(&changed);
        revision
    }

    fn publish(&mut self) {
        let snapshot = self.store.snapshot();
        self.metrics.revision_received.set(i64::try_from(snapshot.revision).unwrap_or(i64::MAX));
        self.metrics.frontends_shadowed.set(i64::try_from(snapshot.shadowed()).unwrap_or(i64::MAX));
        let snapshot = Arc::new(snapshot.clone());
        self.received.send_replace(snapshot.clone());
        if self.whole {
            self.snapshots.send_replace(snapshot);
            #[cfg(test)]
            {
                self.published += 1;
            }
        }
    }

    /// Says once which Service keeps a frontend that another wants too.
    fn tell_conflicts(&mut self, changed: &[ServiceKey]) {
        let snapshot = self.store.snapshot();
        if snapshot.shadowed() == 0 {
            self.told.clear();
            return;
        }
        let node = snapshot.node.as_ref().map(|(_, node)| node.clone()).unwrap_or_default();
        for state in changed.iter().filter_map(|key| snapshot.services.get(key)) {
            for claim in claims(&state.service, &node) {
                let Some(route) = snapshot.frontends.get(&claim.frontend) else { continue };
                let keeps = route.service == claim.service;
                if keeps || self.told.len() >= TOLD_LIMIT || !self.told.insert((claim.clone(), route.service.clone())) {
                    continue;
                }
                tracing::warn!(
                    service = %claim.service, frontend = %claim.frontend, kept_by = %route.service,
                    "two Services want one {}; the older keeps it: give one of them another", claim.kind,
                );
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sheave_model::{Frontend, Protocol, Service, ServicePort, View};

    pub(crate) fn service(name: &str, ip: &str) -> Service {
        Service {
            key: ServiceKey::new("ns", name),
            created: 1,
            cluster_ips: vec![ip.parse().unwrap()],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            internal_policy: sheave_model::Policy::Cluster,
            external_policy: sheave_model::Policy::Cluster,
            affinity: None,
            source_ranges: Vec::new(),
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30080),
                app: sheave_model::AppProtocol::Opaque,
            }],
            endpoints: vec![sheave_model::Endpoint {
                address: "10.1.0.9".parse().unwrap(),
                ports: vec![8080],
                ready: true,
                serving: true,
                terminating: false,
                node: Some("n1".into()),
                zone: None,
            }],
        }
    }

    pub(crate) fn delta(services: Vec<Service>) -> Delta {
        let upsert = |service| {
            let resource = Resource::Service(service);
            Upsert { hash: sheave_api::encode_resource(&resource).hash, resource }
        };
        Delta { upserts: services.into_iter().map(upsert).collect(), ..Delta::default() }
    }

    fn options(addresses: &[&str]) -> Options {
        Options { node: "n1".into(), node_addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
    }

    #[tokio::test]
    async fn what_is_queued_is_published_at_once_and_each_hears_its_revision() {
        let disk = Some(Delta::default());
        let (mut task, handle) = StoreTask::new(options(&[]), disk, Metrics::new().unwrap(), Status::default());
        let before = task.published;
        let mut heard = Vec::new();
        for n in 0..QUEUE {
            let (applied, revision) = oneshot::channel();
            let delta = delta(vec![service(&format!("s{n}"), &format!("10.0.0.{}", n + 1))]);
            handle.changes.send(Change { delta, complete: n == QUEUE - 1, applied }).await.unwrap();
            heard.push(revision);
        }
        let mut snapshots = handle.snapshots.clone();
        let complete = handle.complete.clone();
        snapshots.mark_unchanged();
        drop(handle);
        task.follow().await;
        assert_eq!(task.published, before + 1);
        assert_eq!(snapshots.borrow_and_update().revision, QUEUE as u64 + 1);
        assert!(*complete.borrow());
        for (n, revision) in heard.into_iter().enumerate() {
            assert_eq!(revision.await.unwrap(), n as u64 + 2);
        }
    }

    #[tokio::test]
    async fn without_a_file_a_part_of_the_first_series_is_held_and_not_published() {
        let addresses = options(&["192.0.2.7"]);
        let (task, handle) = StoreTask::new(addresses, None, Metrics::new().unwrap(), Status::default());
        tokio::spawn(task.run());
        for (name, ip, complete) in [("a", "10.0.0.1", false), ("b", "10.0.0.2", true)] {
            assert_eq!(handle.snapshots.borrow().revision, 0);
            let (applied, revision) = oneshot::channel();
            let change = Change { delta: delta(vec![service(name, ip)]), complete, applied };
            handle.changes.send(change).await.unwrap();
            revision.await.unwrap();
            assert!(handle.received.borrow().services.contains_key(&ServiceKey::new("ns", name)));
        }
        assert_eq!(handle.snapshots.borrow().services.len(), 2);
    }

    #[test]
    fn node_addresses_of_the_command_line_win_over_the_nodes_own() {
        let metrics = Metrics::new().unwrap();
        let disk = delta(vec![service("a", "10.0.0.1")]);
        let (mut task, handle) =
            StoreTask::new(options(&["192.0.2.7"]), Some(disk), metrics.clone(), Status::default());
        let node_port = Frontend::new("192.0.2.7".parse().unwrap(), 30080, Protocol::Tcp);
        assert!(handle.snapshots.borrow().frontends.contains_key(&node_port));

        let facts =
            NodeFacts { name: "n1".into(), addresses: vec!["192.0.2.1".parse().unwrap()], ..NodeFacts::default() };
        let upserts = vec![Upsert { hash: ContentHash(3), resource: Resource::Node(facts) }];
        task.apply(Delta { upserts, view: View::default(), ..Delta::default() });
        assert!(task.store.snapshot().frontends.contains_key(&node_port));
        assert_eq!(task.store.snapshot().frontends.len(), 3);
    }

    #[test]
    fn two_services_with_one_address_are_counted() {
        let metrics = Metrics::new().unwrap();
        let disk = delta(vec![service("a", "10.0.0.1"), service("b", "10.0.0.1")]);
        let (task, _handle) = StoreTask::new(options(&[]), Some(disk), metrics.clone(), Status::default());
        // The ClusterIP and the NodePort on 127.0.0.1.
        assert_eq!(metrics.frontends_shadowed.get(), 2);
        assert_eq!(task.told.len(), 2);
    }
}
