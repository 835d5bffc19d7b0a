//! Sweeps the rows that socket hooks keep about UDP flows, once the frontends they speak of are gone, and counts the rest.
//!
//! On a thread for what blocks, now and then: walking full maps takes longer than a change may wait to be programmed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use sheave_loader::{Fill, Flows};
use sheave_model::{Frontend, Protocol, Route, Snapshot};
use tokio::sync::watch;

use super::scrape::show;
use crate::metrics::Metrics;

/// How soon after a frontend went its rows are swept.
const SOON: Duration = Duration::from_secs(2);
/// How many times as long rows are not counted where nothing went: they are then half a minute old at most.
const COUNT: u32 = 15;

/// Maps with rows of flows.
pub(super) trait Rows: Send + 'static {
    /// Deletes the rows whose frontend does not stand, and says how full the maps are then.
    fn sweep(&mut self, stands: &dyn Fn(SocketAddr) -> bool) -> [Fill; 2];
}

impl Rows for Flows {
    fn sweep(&mut self, stands: &dyn Fn(SocketAddr) -> bool) -> [Fill; 2] {
        Flows::sweep(self, stands)
    }
}

/// Keeps them until everything stops. Nothing is swept before all of a controller's state has come: pinned rows may be of
/// Services that a snapshot on disk doesn't know yet.
pub(super) async fn keep(
    mut rows: impl Rows,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mut complete: watch::Receiver<bool>,
    metrics: Metrics,
) {
    if complete.wait_for(|complete| *complete).await.is_err() {
        return;
    }
    let mut swept = OrdMap::new();
    let mut quiet = COUNT;
    loop {
        let snapshot = snapshots.borrow().clone();
        quiet += 1;
        if quiet > COUNT || lost_any(&swept, &snapshot.frontends) {
            swept.clone_from(&snapshot.frontends);
            quiet = 0;
            let newest = snapshots.clone();
            let swept = tokio::task::spawn_blocking(move || {
                // By the newest snapshot, once more for what seems gone: a frontend that came meanwhile may have flows already.
                let stands = |address| {
                    let frontend = Frontend { address, protocol: Protocol::Udp };
                    snapshot.frontends.contains_key(&frontend) || newest.borrow().frontends.contains_key(&frontend)
                };
                let fills = rows.sweep(&stands);
                (rows, fills)
            });
            let Ok((again, fills)) = swept.await else { return };
            rows = again;
            show(&metrics, &fills);
        }
        tokio::time::sleep(SOON).await;
    }
}

/// Whether a frontend of `before` is none any more.
fn lost_any(before: &OrdMap<Frontend, Route>, now: &OrdMap<Frontend, Route>) -> bool {
    before.diff(now).any(|item| matches!(item, DiffItem::Remove(..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{delta, service};
    use sheave_model::{ResourceKey, Store};
    use std::sync::Mutex;

    type Meanwhile = Option<Box<dyn FnOnce() + Send>>;

    /// Rows by their frontends, and what happens when a sweep has begun.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Vec<SocketAddr>>>, Arc<Mutex<Meanwhile>>);

    impl Rows for Fake {
        fn sweep(&mut self, stands: &dyn Fn(SocketAddr) -> bool) -> [Fill; 2] {
            if let Some(meanwhile) = self.1.lock().unwrap().take() {
                meanwhile();
            }
            let mut rows = self.0.lock().unwrap();
            rows.retain(|frontend| stands(*frontend));
            let entries = rows.len() as u64;
            [("flows", entries), ("replies", 0)].map(|(map, entries)| Fill { map, entries, capacity: 10 })
        }
    }

    fn udp(name: &str, ip: &str) -> sheave_model::Service {
        let mut service = service(name, ip);
        service.ports[0].protocol = Protocol::Udp;
        service
    }

    fn at(service: &sheave_model::Service) -> SocketAddr {
        SocketAddr::new(service.cluster_ips[0], service.ports[0].port)
    }

    async fn counted(metrics: &Metrics, count: i64) {
        let gauge = metrics.map_entries.with_label_values(&["flows"]);
        let reached = async {
            while gauge.get() != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON * 5, reached).await.unwrap();
    }

    #[tokio::test]
    async fn rows_of_a_frontend_that_came_after_a_sweep_had_begun_stay() {
        let (old, new) = (udp("a", "10.0.0.1"), udp("b", "10.0.0.2"));
        let mut store = Store::default();
        let snapshots = watch::Sender::new(Arc::new(store.apply(delta(vec![old.clone()])).clone()));
        let later = Arc::new(store.apply(delta(vec![new.clone()])).clone());
        let publish = snapshots.clone();
        let meanwhile: Meanwhile = Some(Box::new(move || drop(publish.send_replace(later))));
        let rows = Fake(Arc::new(Mutex::new(vec![at(&old), at(&new)])), Arc::new(Mutex::new(meanwhile)));
        let (complete, metrics) = (watch::Sender::new(true), Metrics::new().unwrap());
        tokio::spawn(keep(rows.clone(), snapshots.subscribe(), complete.subscribe(), metrics.clone()));
        counted(&metrics, 2).await;
    }

    #[tokio::test]
    async fn rows_of_a_frontend_that_went_are_swept_and_those_of_others_stay() {
        let (gone, kept) = (udp("a", "10.0.0.1"), udp("b", "10.0.0.2"));
        let rows = Fake(Arc::new(Mutex::new(vec![at(&gone), at(&kept)])), Arc::default());
        let mut store = Store::default();
        let snapshots = watch::Sender::new(Arc::new(store.apply(delta(vec![gone.clone(), kept.clone()])).clone()));
        let complete = watch::Sender::new(true);
        let metrics = Metrics::new().unwrap();
        tokio::spawn(keep(rows.clone(), snapshots.subscribe(), complete.subscribe(), metrics.clone()));
        counted(&metrics, 2).await;
        let mut removal = delta(vec![]);
        removal.removals.push(ResourceKey::Service(gone.key.clone()));
        snapshots.send_replace(Arc::new(store.apply(removal).clone()));
        counted(&metrics, 1).await;
        assert_eq!(*rows.0.lock().unwrap(), [at(&kept)]);
    }
}
