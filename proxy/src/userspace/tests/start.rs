//! What a start leaves behind when it fails, and on nodes that lack something; what is looked after once it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sheave_model::{Snapshot, Store};
use tokio::sync::watch;

use super::world::{Netns, World};
use crate::metrics::Metrics;
use crate::userspace::testing::{Build, delta_of, node, service};
use crate::userspace::{StartError, Userspace, probe, start};

fn started(ns: &Netns, snapshots: watch::Receiver<Arc<Snapshot>>) -> Result<Userspace, StartError> {
    ns.run(move || start(&World::options(), snapshots, &Metrics::new().unwrap()))
}

#[test]
fn a_start_that_fails_leaves_no_table() {
    let ns = Netns::new();
    ns.run(|| probe(&World::options())).unwrap();
    assert_eq!(ns.output("nft", "list ruleset"), "");
    let (_sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let _taken = ns.run(|| std::net::UdpSocket::bind("127.0.0.1:15001").unwrap());
    assert!(matches!(started(&ns, snapshots), Err(StartError::Listen { port: 15001, .. })));
    assert_eq!(ns.output("nft", "list ruleset"), "");
}

#[test]
fn a_start_beside_a_table_that_is_there_leaves_it() {
    let mut world = World::new();
    world.apply(vec![service("web", "10.96.0.10").port(80).ready("10.1.0.6", &[8080])], vec![]);
    let table = world.node.output("nft", "list ruleset");
    assert!(table.contains("10.96.0.10 . tcp . 80"), "{table}");
    world.node.run(|| probe(&World::options())).unwrap();
    assert_eq!(world.node.output("nft", "list ruleset"), table);
}

#[test]
fn a_node_whose_ipv6_is_switched_off_is_served_over_ipv4() {
    let ns = Netns::new();
    ns.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let mut store = Store::default();
    store.apply(delta_of(vec![node(&["10.0.0.1"], &[])], vec![]));
    let (_sender, snapshots) = watch::channel(Arc::new(store.snapshot().clone()));
    let userspace = started(&ns, snapshots).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while *userspace.programmed().borrow() == 0 {
        assert!(Instant::now() < end, "nothing was programmed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(ns.output("ip", "-4 rule").contains("fwmark 0x100000/0x100000 lookup 15001"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(userspace.shutdown(Duration::ZERO));
}

#[test]
fn the_routing_rule_is_put_back_while_endpoints_never_stop_changing() {
    let mut world = World::new();
    let change = |last: u16| service("web", "10.96.0.10").port(80).ready("10.1.0.6", &[8000 + last % 2]);
    world.node.ip("rule del fwmark 0x100000/0x100000 lookup 15001");
    let end = Instant::now() + Duration::from_secs(20);
    for last in 0.. {
        assert!(Instant::now() < end, "nobody put the rule back");
        world.apply(vec![change(last)], vec![]);
        if last % 10 == 0 && world.node.output("ip", "-4 rule").contains("fwmark") {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
