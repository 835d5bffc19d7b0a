//! Random worlds. [`crate::Fake`] checks its invariants after every operation; here is checked that the maps follow.

use std::time::Duration;

use proptest::prelude::*;
use sheave_model::{AppProtocol, Protocol, Resource, Service, ServiceKey, Snapshot};

use super::world::{Bench, apply, assert_follows, drain, endpoint, ip, port, service, store, terminating};
use crate::{Fake, Faulty, Reconciler};

/// What happens in a world.
#[derive(Clone, Debug)]
enum Step {
    Put(Box<Service>),
    Remove(u8),
    Wait(u16),
    Restart,
}

fn name(number: u8) -> String {
    format!("s{number}")
}

/// Few names, addresses and ports, so that they collide, move and come back.
fn any_service() -> impl Strategy<Value = Service> {
    let ports = prop::collection::btree_map(0u16..3, (any::<bool>(), any::<bool>(), prop::option::of(0u16..2)), 0..3);
    let endpoints = prop::collection::btree_map((0u16..8, any::<bool>()), 0u8..4, 0..10);
    (0u8..3, 0u8..3, any::<bool>(), ports, endpoints).prop_map(|(number, address, dual, ports, endpoints)| {
        let ports: Vec<_> = ports
            .into_iter()
            .map(|(number, (udp, http, node_port))| {
                let mut port = port(80 + number, if udp { Protocol::Udp } else { Protocol::Tcp });
                port.app = if http && !udp { AppProtocol::Http } else { AppProtocol::Opaque };
                port.node_port = node_port.map(|port| 30000 + port);
                port
            })
            .collect();
        let count = ports.len() as u16;
        let endpoints = endpoints.into_iter().map(|((n, v4), state)| {
            let mut endpoint = endpoint(n, count, v4);
            match state {
                0 => (endpoint.ready, endpoint.serving) = (false, false),
                1 => endpoint = terminating(endpoint),
                _ => {}
            }
            endpoint
        });
        let mut endpoints: Vec<_> = endpoints.collect();
        endpoints.sort_by_key(|endpoint| endpoint.address);
        let mut service = service(&name(number), &format!("10.96.0.{address}"), ports, endpoints);
        if dual {
            service.cluster_ips.push(ip(&format!("fd00:96::{address}")));
        }
        service
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_service().prop_map(|service| Step::Put(Box::new(service))),
        2 => (0u8..3).prop_map(Step::Remove),
        2 => (0u16..2000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

fn change(step: &Step, store: &mut sheave_model::Store) -> Option<Snapshot> {
    match step {
        Step::Put(service) => Some(apply(store, vec![Resource::Service((**service).clone())], vec![])),
        Step::Remove(number) => Some(apply(store, vec![], vec![ServiceKey::new("ns", name(*number))])),
        Step::Wait(_) | Step::Restart => None,
    }
}

fn everything() -> Vec<ServiceKey> {
    (0..3).map(|number| ServiceKey::new("ns", name(number))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_maps_follow_every_snapshot_and_end_empty(steps in prop::collection::vec(any_step(), 1..25)) {
        let (mut bench, mut store) = (Bench::new(), store());
        for step in &steps {
            match step {
                Step::Wait(millis) => drop(bench.wait(Duration::from_millis(u64::from(*millis)))),
                Step::Restart => {
                    bench.restart();
                    // A proxy that died within a grace forgot when rows retired; they are swept a grace after the restart.
                    bench.update(store.snapshot());
                }
                _ => {
                    let snapshot = change(step, &mut store).unwrap();
                    prop_assert_eq!(bench.update(&snapshot).failures, vec![]);
                }
            }
            assert_follows(&bench.maps, store.snapshot());
        }
        bench.update(&apply(&mut store, vec![], everything()));
        drain(&mut bench.reconciler, &mut bench.maps);
        prop_assert!(bench.maps.is_empty(), "{:?}", bench.maps);
    }

    #[test]
    fn faults_never_break_what_is_reachable_and_all_converges(
        steps in prop::collection::vec(any_step(), 1..20),
        rate in 1u8..160,
        seed in any::<u64>(),
    ) {
        let mut store = store();
        let mut now = std::time::Instant::now();
        let mut maps = Faulty::new(Fake::new(now), rate, seed);
        let mut reconciler = Reconciler::default();
        for step in &steps {
            match step {
                Step::Wait(millis) => {
                    now += Duration::from_millis(u64::from(*millis));
                    maps.inner.now = now;
                    reconciler.handle_timeout(now, &mut maps);
                }
                Step::Restart => {
                    reconciler = Reconciler::new(&maps.inner.restored());
                    reconciler.update(store.snapshot(), now, &mut maps);
                }
                _ => {
                    let snapshot = change(step, &mut store).unwrap();
                    let report = reconciler.update(&snapshot, now, &mut maps);
                    prop_assert!(report.failures.len() <= reconciler.failing(u32::MAX));
                }
            }
        }
        maps.rate = 0;
        let mut maps = maps.inner;
        drain(&mut reconciler, &mut maps);
        prop_assert_eq!(reconciler.failing(u32::MAX), 0);
        assert_follows(&maps, store.snapshot());
        let usage = reconciler.usage();
        prop_assert_eq!(usage.targets, maps.targets.len());
        prop_assert_eq!(usage.slots, maps.slots.len());
        prop_assert_eq!(usage.backends, maps.backends.len());
        reconciler.update(&apply(&mut store, vec![], everything()), maps.now, &mut maps);
        drain(&mut reconciler, &mut maps);
        prop_assert!(maps.is_empty(), "{:?}", maps);
    }
}
