//! One claim each, by hand.

use std::time::Duration;

use sheave_abi::{BACKEND_LEAVING, FRONTEND_LISTENER};
use sheave_model::{AppProtocol, Protocol, Resource, Service, ServiceKey};

use super::world::{Bench, apply, assert_follows, endpoint, port, service, store, terminating};
use crate::{Fake, GRACE, MapError, MapOp, Maps};

fn web(endpoints: u16) -> Service {
    let endpoints = (1..=endpoints).map(|n| endpoint(n, 1, true)).collect();
    service("web", "10.96.0.1", vec![port(80, Protocol::Tcp)], endpoints)
}

fn dns(endpoints: Vec<sheave_model::Endpoint>) -> Service {
    service("dns", "10.96.0.10", vec![port(53, Protocol::Udp)], endpoints)
}

#[test]
fn the_frontend_is_written_last_and_deleted_first() {
    let (mut bench, mut store) = (Bench::new(), store());
    let snapshot = apply(&mut store, vec![Resource::Service(web(2))], vec![]);
    bench.update(&snapshot);
    let kinds: Vec<_> = bench.maps.log.iter().map(kind).collect();
    assert_eq!(kinds, ["target", "backend", "backend", "slot", "slot", "frontend"]);

    bench.maps.log.clear();
    let snapshot = apply(&mut store, vec![], vec![ServiceKey::new("ns", "web")]);
    bench.update(&snapshot);
    bench.wait(GRACE);
    let kinds: Vec<_> = bench.maps.log.iter().map(kind).collect();
    assert_eq!(kinds, ["-frontend", "-slot", "-slot", "-backend", "-backend", "-target"]);
    assert!(bench.maps.is_empty());
    assert_eq!(bench.reconciler.poll_timeout(), None);
}

fn kind(op: &MapOp) -> &'static str {
    match op {
        MapOp::PutTarget { .. } => "target",
        MapOp::PutBackend { .. } => "backend",
        MapOp::PutSlot { .. } => "slot",
        MapOp::PutFrontend { .. } => "frontend",
        MapOp::DeleteFrontend { .. } => "-frontend",
        MapOp::DeleteSlot { .. } => "-slot",
        MapOp::DeleteBackend { .. } => "-backend",
        MapOp::DeleteTarget { .. } => "-target",
    }
}

#[test]
fn one_endpoint_of_a_thousand_costs_a_few_writes() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.update(&apply(&mut store, vec![Resource::Service(web(1000))], vec![]));
    let more = bench.update(&apply(&mut store, vec![Resource::Service(web(1001))], vec![]));
    assert_eq!(more.writes, 3, "backend, slot, frontend");
    let mut fewer = web(1001);
    fewer.endpoints.remove(500);
    let fewer = bench.update(&apply(&mut store, vec![Resource::Service(fewer)], vec![]));
    assert_eq!(fewer.writes, 2, "the last one's slot, frontend");
    assert_eq!(bench.wait(GRACE).writes, 2, "old slot, old backend");
    assert_follows(&bench.maps, store.snapshot());
}

#[test]
fn a_set_that_changes_altogether_is_swapped_by_one_write() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.update(&apply(&mut store, vec![Resource::Service(web(3))], vec![]));
    let mut other = web(0);
    other.endpoints = (11..=13).map(|n| endpoint(n, 1, true)).collect();
    let key = *bench.maps.frontends.keys().next().unwrap();
    let before = bench.maps.backends_of(&key).unwrap();
    let snapshot = apply(&mut store, vec![Resource::Service(other)], vec![]);
    bench.maps.log.clear();
    bench.update(&snapshot);
    let commits = bench.maps.log.iter().filter(|op| kind(op) == "frontend").count();
    assert_eq!(commits, 1);
    assert!(bench.maps.backends_of(&key).unwrap().iter().all(|row| !before.contains(row)));
}

#[test]
fn other_services_are_not_touched() {
    let (mut bench, mut store) = (Bench::new(), store());
    let many = (0..200).map(|n| {
        let address = format!("10.96.1.{n}");
        Resource::Service(service(
            &format!("s{n}"),
            &address,
            vec![port(80, Protocol::Tcp)],
            vec![endpoint(n, 1, true)],
        ))
    });
    bench.update(&apply(&mut store, many.collect(), vec![]));
    bench.maps.log.clear();
    bench.update(&apply(&mut store, vec![Resource::Service(web(1))], vec![]));
    assert_eq!(bench.maps.log.len(), 4);
}

#[test]
fn a_restart_with_the_same_snapshot_writes_nothing_and_keeps_ids() {
    let (mut bench, mut store) = (Bench::new(), store());
    let udp = dns(vec![endpoint(1, 1, true), endpoint(2, 1, true)]);
    bench.update(&apply(&mut store, vec![Resource::Service(web(5)), Resource::Service(udp)], vec![]));
    bench.update(&apply(&mut store, vec![Resource::Service(web(4))], vec![]));
    bench.wait(GRACE);
    let before: Vec<_> = bench.reconciler.targets().map(|(id, key)| (id, key.clone())).collect();
    bench.maps.log.clear();
    bench.restart();
    assert_eq!(bench.reconciler.targets().count(), 0, "nobody has claimed them yet");
    bench.update(store.snapshot());
    bench.wait(Duration::from_secs(100));
    assert_eq!(bench.maps.log, []);
    let after: Vec<_> = bench.reconciler.targets().map(|(id, key)| (id, key.clone())).collect();
    assert_eq!(after, before);
}

#[test]
fn a_restart_removes_what_went_meanwhile() {
    let (mut bench, mut store) = (Bench::new(), store());
    let udp = dns(vec![endpoint(1, 1, true)]);
    bench.update(&apply(&mut store, vec![Resource::Service(web(5)), Resource::Service(udp)], vec![]));
    apply(&mut store, vec![Resource::Service(web(2))], vec![ServiceKey::new("ns", "dns")]);
    bench.restart();
    bench.update(store.snapshot());
    assert_follows(&bench.maps, store.snapshot());
    bench.wait(GRACE);
    assert_eq!((bench.maps.targets.len(), bench.maps.slots.len(), bench.maps.backends.len()), (1, 2, 2));
}

#[test]
fn a_udp_backend_that_leaves_is_marked_at_once_and_one_that_ends_but_serves_is_not() {
    let (mut bench, mut store) = (Bench::new(), store());
    let all = vec![endpoint(1, 1, true), endpoint(2, 1, true), endpoint(3, 1, true)];
    bench.update(&apply(&mut store, vec![Resource::Service(dns(all.clone()))], vec![]));
    let ends = vec![terminating(all[0].clone()), all[1].clone(), all[2].clone()];
    bench.update(&apply(&mut store, vec![Resource::Service(dns(ends))], vec![]));
    assert_follows(&bench.maps, store.snapshot());
    bench.wait(Duration::from_secs(100));
    assert_eq!(bench.maps.backends.len(), 3, "sockets may still use the first");
    assert!(bench.maps.backends.values().all(|row| row.flags == 0));

    bench.update(&apply(&mut store, vec![Resource::Service(dns(all[1..].to_vec()))], vec![]));
    let leaving = bench.maps.backends.values().filter(|row| row.flags == BACKEND_LEAVING).count();
    assert_eq!((leaving, bench.maps.backends.len()), (1, 3));

    bench.update(&apply(&mut store, vec![Resource::Service(dns(all))], vec![]));
    assert!(bench.maps.backends.values().all(|row| row.flags == 0), "it came back");
    assert_eq!(bench.maps.backends.len(), 3, "with the id it had");
}

#[test]
fn a_port_that_turns_http_is_left_to_the_listeners_and_taken_back() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.update(&apply(&mut store, vec![Resource::Service(web(1))], vec![]));
    let mut http = web(1);
    http.ports[0].app = AppProtocol::Http;
    bench.update(&apply(&mut store, vec![Resource::Service(http)], vec![]));
    assert_follows(&bench.maps, store.snapshot());
    bench.wait(GRACE);
    assert!(bench.maps.targets.is_empty() && bench.maps.slots.is_empty() && bench.maps.backends.is_empty());
    bench.update(&apply(&mut store, vec![Resource::Service(web(1))], vec![]));
    assert_follows(&bench.maps, store.snapshot());
}

#[test]
fn a_full_map_fails_one_service_which_is_left_to_the_listeners_until_there_is_room() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.maps.slots_capacity = 4;
    bench.update(&apply(&mut store, vec![Resource::Service(web(2))], vec![]));
    let udp = dns(vec![endpoint(1, 1, true)]);
    let report = bench.update(&apply(&mut store, vec![Resource::Service(web(9)), Resource::Service(udp)], vec![]));
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].service, Some(ServiceKey::new("ns", "web")));
    assert_eq!(bench.reconciler.failing(u32::MAX), 1);
    let rows: Vec<_> = bench.maps.frontends.values().map(|row| row.flags & FRONTEND_LISTENER).collect();
    assert_eq!(rows, [FRONTEND_LISTENER, 0], "web to the listeners, dns not");
    bench.maps.slots_capacity = 100;
    bench.wait(Duration::from_secs(2));
    assert_eq!(bench.reconciler.failing(u32::MAX), 0);
    assert_follows(&bench.maps, store.snapshot());
}

#[test]
fn a_frontend_that_there_is_no_room_for_takes_none_of_its_targets_others_along() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.maps.frontends_capacity = 1;
    bench.update(&apply(&mut store, vec![Resource::Service(web(2))], vec![]));
    let first = *bench.maps.frontends.keys().next().unwrap();
    for endpoints in [2, 3] {
        let mut wider = web(endpoints);
        wider.external_ips = vec!["192.0.2.1".parse().unwrap()]; // later in order
        wider.cluster_ips.push("10.95.0.1".parse().unwrap()); // and earlier
        let report = bench.update(&apply(&mut store, vec![Resource::Service(wider)], vec![]));
        assert_eq!(report.failures.len(), 1);
        assert_eq!(bench.maps.backends_of(&first).map(|backends| backends.len()), Some(usize::from(endpoints)));
        bench.maps.log.clear();
        bench.wait(Duration::from_secs(100));
        assert!(!bench.maps.log.iter().any(|op| kind(op) == "frontend"), "a retry moves it to and fro");
    }
    bench.maps.frontends_capacity = 3;
    bench.wait(Duration::from_secs(200));
    assert_follows(&bench.maps, store.snapshot());
}

#[test]
fn a_mark_that_cannot_be_made_leaves_frontends_where_they_lead() {
    let (mut bench, mut store) = (Bench::new(), store());
    let all = vec![endpoint(1, 1, true), endpoint(2, 1, true), endpoint(3, 1, true)];
    bench.update(&apply(&mut store, vec![Resource::Service(dns(all.clone()))], vec![]));
    let snapshot = apply(&mut store, vec![Resource::Service(dns(all[..2].to_vec()))], vec![]);
    // The frontend is written; the mark on the third isn't.
    let mut broken = Broken { maps: &mut bench.maps, left: 1 };
    let report = bench.reconciler.update(&snapshot, bench.now, &mut broken);
    assert_eq!(report.failures.len(), 1);
    assert_follows(&bench.maps, store.snapshot());
    bench.wait(Duration::from_secs(2));
    assert_eq!(bench.reconciler.failing(u32::MAX), 0);
}

#[test]
fn the_grace_of_rows_begins_when_an_update_has_been_written() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.update(&apply(&mut store, vec![Resource::Service(web(3))], vec![]));
    let snapshot = apply(&mut store, vec![Resource::Service(web(1))], vec![]);
    bench.reconciler.update(&snapshot, bench.now, &mut bench.maps);
    assert_eq!(bench.reconciler.poll_timeout(), Some(bench.now), "at once");
    assert_eq!(bench.wait(GRACE * 5).writes, 0, "writing took as long");
    assert_eq!(bench.wait(GRACE).writes, 4);
}

#[test]
fn a_vip_that_moves_to_another_service_is_moved_by_one_write() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.update(&apply(&mut store, vec![Resource::Service(web(1))], vec![]));
    bench.maps.log.clear();
    let other = service("other", "10.96.0.1", vec![port(80, Protocol::Tcp)], vec![endpoint(9, 1, true)]);
    let gone = vec![ServiceKey::new("ns", "web")];
    bench.update(&apply(&mut store, vec![Resource::Service(other)], gone));
    assert!(!bench.maps.log.iter().any(|op| kind(op) == "-frontend"));
    assert_follows(&bench.maps, store.snapshot());
    bench.wait(GRACE);
    assert_eq!(bench.maps.targets.len(), 1);
}

/// Maps that take some operations and no more.
struct Broken<'a> {
    maps: &'a mut Fake,
    left: usize,
}

impl Maps for Broken<'_> {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        let Some(left) = self.left.checked_sub(1) else { return Err(MapError::Full { map: "any", capacity: 0 }) };
        self.left = left;
        self.maps.apply(op)
    }
}

#[test]
fn rows_that_come_into_use_when_their_grace_ends_are_kept() {
    let (mut bench, mut store) = (Bench::new(), store());
    bench.update(&apply(&mut store, vec![Resource::Service(web(2))], vec![]));
    let snapshot = apply(&mut store, vec![Resource::Service(web(4))], vec![]);
    // Two backends and one of two slots are written; nothing can be taken back.
    let mut broken = Broken { maps: &mut bench.maps, left: 3 };
    let report = bench.reconciler.update(&snapshot, bench.now, &mut broken);
    assert_eq!((report.failures.len(), bench.maps.slots.len()), (1, 3));
    // The next try and the end of the slot's grace fall on one moment; the maps check that no frontend loses a slot.
    bench.wait(GRACE);
    assert_follows(&bench.maps, &snapshot);
}
