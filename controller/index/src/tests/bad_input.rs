//! Bad input: the bad part is left out and said, everything else is served.

use serde_json::json;

use super::*;
use crate::{Kind, ObjectKey, WIDE_SELECTOR};

#[test]
fn bad_ports_are_left_out_and_the_rest_is_served() {
    let ports = json!([
        {"name": "good", "port": 80}, {"name": "zero", "port": 0}, {"name": "big", "port": 70000},
        {"name": "twice", "port": 80}, {"name": "sctp", "port": 81, "protocol": "SCTP"},
        {"name": "target", "port": 82, "targetPort": 70000}, {"name": "node", "port": 83, "nodePort": 70000},
        {"name": "good", "port": 84}
    ]);
    let index = index([service("web", json!({"spec": {"ports": ports}})), pod("a", "10.0.0.1", json!({}))]);
    let names: Vec<String> = service_of(&index, "web").unwrap().ports.iter().map(|p| p.name.to_string()).collect();
    assert_eq!(names, ["good", "node"]);
    assert_eq!(shown(&index), ["10.0.0.1:80,83 RS"]);
    assert_eq!(
        wrong(&index),
        [
            "Service ns/web: spec.ports[1].port: 0 is not a port",
            "Service ns/web: spec.ports[2].port: 70000 is not a port",
            "Service ns/web: spec.ports[3].port: 80/TCP is there twice",
            "Service ns/web: spec.ports[4].protocol: \"SCTP\" is not carried",
            "Service ns/web: spec.ports[5].targetPort: 70000 is not a port",
            "Service ns/web: spec.ports[6].nodePort: 70000 is not a port",
            "Service ns/web: spec.ports[7].name: \"good\" names two ports",
        ]
    );
}

#[test]
fn bad_addresses_are_left_out_and_the_rest_is_served() {
    let mut index = index([
        service("web", json!({"spec": {"externalIPs": ["nonsense", "127.0.0.1", "203.0.113.1"]}})),
        pod("a", "10.0.0.1", json!({"status": {"podIPs": [{"ip": "10.0.0.300"}, {"ip": "10.0.0.1"}]}})),
        slice("s", json!({"endpoints": [{"addresses": ["fd00::1"]}, {"addresses": ["10.0.0.2"]}]})),
        node("n2", "b", &["x", "192.0.2.2"]),
    ]);
    assert_eq!(shown(&index), ["10.0.0.1:8080 RS", "10.0.0.2:8080 RS"]);
    assert_eq!(service_of(&index, "web").unwrap().external_ips.len(), 1);
    assert_eq!(node_of(&index, "n2").unwrap().addresses.len(), 1);
    assert_eq!(
        wrong(&index),
        [
            "Node n2: status.addresses[0].address: \"x\" is not an IP address",
            "Service ns/web: spec.externalIPs[0]: \"nonsense\" is not an IP address",
            "Service ns/web: spec.externalIPs[1]: 127.0.0.1 cannot be a Service's address",
            "EndpointSlice ns/s: endpoints[0].addresses[0]: \"fd00::1\" is not an address of the slice's addressType",
            "Pod ns/a: status.podIPs[0].ip: \"10.0.0.300\" is not an IP address",
        ]
    );
    assert_eq!(index.take_new_conditions().len(), 5);
    assert_eq!(index.take_new_conditions().len(), 0, "each is news once");
    index.apply(pod("a", "10.0.0.1", json!({})));
    assert_eq!(index.conditions_of(&ObjectKey::new(Kind::Pod, "ns", "a")).count(), 0, "what is mended is forgotten");
}

#[test]
fn of_two_services_with_one_vip_the_younger_is_told_who_keeps_it() {
    let young = json!({"metadata": {"creationTimestamp": "2026-02-01T00:00:00Z"}});
    let mut index = index([service("b-young", young), service("z-old", json!({}))]);
    assert_eq!(wrong(&index), ["Service ns/b-young: spec.clusterIPs: 10.96.0.1:80/TCP is kept by Service ns/z-old"]);
    assert!(service_of(&index, "b-young").is_some() && service_of(&index, "z-old").is_some());
    let oldest = json!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"}});
    index.apply(service("a-oldest", oldest));
    assert_eq!(wrong(&index).len(), 2, "a new keeper is told to all: {:?}", wrong(&index));
    assert!(wrong(&index).iter().all(|line| line.ends_with("kept by Service ns/a-oldest")));
    index.delete(&ObjectKey::new(Kind::Service, "ns", "a-oldest"));
    index.delete(&ObjectKey::new(Kind::Service, "ns", "z-old"));
    assert_eq!(wrong(&index), [""; 0]);
}

#[test]
fn two_services_with_one_node_port_are_told_and_protocols_are_apart() {
    let with = |name: &str, ip: &str, protocol: &str| {
        let ports = json!([{"name": "x", "port": 80, "protocol": protocol, "nodePort": 30080}]);
        service(name, json!({"spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": ports}}))
    };
    let index = index([with("a", "10.96.0.1", "TCP"), with("b", "10.96.0.2", "TCP"), with("c", "10.96.0.3", "UDP")]);
    assert_eq!(wrong(&index), ["Service ns/b: spec.ports[0].nodePort: 30080/TCP is kept by Service ns/a"]);
}

#[test]
fn a_selector_that_matches_very_many_pods_is_said_once_and_served() {
    let mut index = index([service("web", json!({}))]);
    for n in 0..5_000_u32 {
        index.apply(pod(&format!("p{n}"), &format!("10.1.{}.{}", n / 250, n % 250 + 1), json!({})));
    }
    assert_eq!(endpoints(&index).len(), 5_000);
    let news = index.take_new_conditions();
    assert_eq!(news.len(), 1, "{news:?}");
    assert_eq!((news[0].field.as_str(), news[0].object.to_string().as_str()), ("spec.selector", "Service ns/web"));
    for n in WIDE_SELECTOR..5_000 {
        index.delete(&ObjectKey::new(Kind::Pod, "ns", format!("p{n}")));
    }
    assert_eq!(wrong(&index), [""; 0]);
}

#[test]
fn more_endpoints_than_one_message_holds_keep_those_that_take_connections() {
    let unready = json!({"status": {"conditions": []}});
    let mut index = index([service("web", json!({}))]);
    for n in 0..crate::MAX_ENDPOINTS + 10 {
        let over = if n < 10 { unready.clone() } else { json!({}) };
        index.apply(pod(&format!("p{n}"), &format!("10.1.{}.{}", n / 250, n % 250 + 1), over));
    }
    let found = endpoints(&index);
    assert_eq!(found.len(), crate::MAX_ENDPOINTS);
    assert!(found.iter().all(|e| e.ready));
    index.compute_and_note(&key("web"));
    let wide = "Service ns/web: spec.selector: matches more than 1000 pods";
    let cut = "Service ns/web: endpoints: more than 8192; that many are served, those that are ready first";
    assert_eq!(wrong(&index), [wide, cut]);
    (0..10).for_each(|n| drop(index.delete(&ObjectKey::new(Kind::Pod, "ns", format!("p{n}")))));
    index.compute_and_note(&key("web"));
    assert_eq!(wrong(&index), [wide], "all that is left is served");
}

#[test]
fn endpoints_of_slices_that_are_left_out_are_said_too() {
    let mut index = index([service("web", json!({"spec": {"selector": null}}))]);
    for n in 0..=9 {
        let addresses = (0..1_000).map(|at| json!({"addresses": [format!("10.{n}.{}.{}", at / 250, at % 250 + 1)]}));
        index.apply(slice(&format!("s{n}"), json!({"endpoints": addresses.collect::<Vec<_>>()})));
    }
    index.compute_and_note(&key("web"));
    assert_eq!(endpoints(&index).len(), crate::MAX_ENDPOINTS);
    assert!(matches!(&wrong(&index)[..], [one] if one.contains("more than 8192")), "{:?}", wrong(&index));
    assert_eq!(index.left_out(Kind::Service), 1);
    index.delete(&ObjectKey::new(Kind::Service, "ns", "web"));
    assert_eq!((wrong(&index).len(), index.left_out(Kind::Service)), (0, 0));
}

#[test]
fn what_only_informs_is_not_left_out() {
    let twice =
        json!({"spec": {"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}, {"name": "c", "port": 0}]}});
    let mut index = index([service("web", twice), pod("a", "10.0.0.1", json!({"spec": {"nodeName": "n2"}}))]);
    index.begin_resync(Kind::Node);
    index.apply(node("n1", "a", &[]));
    index.end_resync(Kind::Node, 1);
    for n in 0..=WIDE_SELECTOR {
        index.apply(pod(&format!("p{n}"), &format!("10.1.{}.{}", n / 250, n % 250 + 1), json!({})));
    }
    assert_eq!(wrong(&index).len(), 4, "{:?}", wrong(&index));
    assert_eq!(Kind::ALL.map(|kind| index.left_out(kind)).iter().sum::<usize>(), 2, "a Node may go before its pods");
    assert_eq!(index.left_out(Kind::Service), 2, "two ports");
    index.apply(service("web", json!({})));
    assert_eq!(index.left_out(Kind::Service), 0);
    index.apply(service("other", json!({})));
    assert_eq!(index.left_out(Kind::Service), 1, "one of two with the same address");
}

#[test]
fn a_node_that_pods_name_and_that_does_not_exist_is_said_once_lists_are_complete() {
    let mut index = index([pod("a", "10.0.0.1", json!({"spec": {"nodeName": "n2"}}))]);
    assert_eq!(wrong(&index), [""; 0], "before the first list nobody knows");
    index.begin_resync(Kind::Node);
    index.apply(node("n1", "a", &[]));
    index.end_resync(Kind::Node, 1);
    assert_eq!(wrong(&index).len(), 1);
    index.apply(node("n2", "a", &[]));
    assert_eq!(wrong(&index), [""; 0]);
}

#[test]
fn source_ranges_of_which_none_can_be_read_let_nobody_in() {
    let index = index([service("web", json!({"spec": {"loadBalancerSourceRanges": ["x", "y/8"]}}))]);
    let ranges = service_of(&index, "web").unwrap().source_ranges;
    assert_eq!(ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0/32", "::/128"]);
    assert_eq!(index.conditions().count(), 2);
}

#[test]
fn a_nameless_object_is_refused() {
    let refused = facts::from_pod(&Pod::default(), &mut Strings::default());
    assert_eq!(refused, Err(facts::BadObject::Nameless(Kind::Pod)));
}
