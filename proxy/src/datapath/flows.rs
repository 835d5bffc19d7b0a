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
            let swept = tokio::task::spawn_blocking(move || {
                let stands = |address| snapshot.frontends.contains_key(&Frontend { address, protocol: Protocol::Udp });
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

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Vec<SocketAddr>>>);

    impl Rows for Fake {
        fn sweep(&mut self, stands: &dyn Fn(SocketAddr) -> bool) -> [Fill; 2] {
            let mut rows = self.0.lock().unwrap();
            rows.retain(|frontend| stands(*frontend));
            let entries = rows.len() as u64;
            [("flows", entries), ("replies", 0)].map(|(map, entries)| Fill { map, entries, capacity: 10 })
        }
    }

    #[tokio::test]
    async fn rows_of_a_frontend_that_went_are_swept_and_those_of_others_stay() {
        let udp = |name, ip| {
            let mut service = service(name, ip);
            service.ports[0].protocol = Protocol::Udp;
            service
        };
        let (gone, kept) = (udp("a", "10.0.0.1"), udp("b", "10.0.0.2"));
        let at = |service: &sheave_model::Service| SocketAddr::new(service.cluster_ips[0], service.ports[0].port);
        let rows = Fake(Arc::new(Mutex::new(vec![at(&gone), at(&kept)])));
        let mut store = Store::default();
        let snapshots = watch::Sender::new(Arc::new(store.apply(delta(vec![gone.clone(), kept.clone()])).clone()));
        let complete = watch::Sender::new(true);
        let metrics = Metrics::new().unwrap();
        tokio::spawn(keep(rows.clone(), snapshots.subscribe(), complete.subscribe(), metrics.clone()));
        let counted = |count: i64| {
            let gauge = metrics.map_entries.with_label_values(&["flows"]);
            async move {
                while gauge.get() != count {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        };
        tokio::time::timeout(SOON * 5, counted(2)).await.unwrap();
        let mut removal = delta(vec![]);
        removal.removals.push(ResourceKey::Service(gone.key.clone()));
        snapshots.send_replace(Arc::new(store.apply(removal).clone()));
        tokio::time::timeout(SOON * 5, counted(1)).await.unwrap();
        assert_eq!(*rows.0.lock().unwrap(), [at(&kept)]);
    }
}
