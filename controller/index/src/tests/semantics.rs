//! SEMANTICS section 6, row by row.

use serde_json::{Value, json};
use sheave_model::AppProtocol;

use super::*;
use crate::{Kind, ObjectKey};

#[test]
fn table_of_pods_and_their_endpoints() {
    let ready = json!({});
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let mut both = not_ready.clone();
    lay(&mut both, deleted.clone());
    // row, pod, publishNotReadyAddresses, ready, serving, terminating
    let rows: [(&str, &Value, bool, bool, bool, bool); 8] = [
        ("Ready | -", &ready, false, true, true, false),
        ("Ready | publishNotReadyAddresses", &ready, true, true, true, false),
        ("not Ready | -", &not_ready, false, false, false, false),
        ("not Ready | publishNotReadyAddresses", &not_ready, true, true, false, false),
        ("Ready, deletionTimestamp | -", &deleted, false, false, true, true),
        ("not Ready, deletionTimestamp | -", &both, false, false, false, true),
        ("Ready, deletionTimestamp | publishNotReadyAddresses", &deleted, true, true, true, true),
        ("not Ready, deletionTimestamp | publishNotReadyAddresses", &both, true, true, false, true),
    ];
    for (row, over, publish, ready, serving, terminating) in rows {
        let service = service("web", json!({"spec": {"publishNotReadyAddresses": publish}}));
        let index = index([service, pod("a", "10.0.0.1", over.clone())]);
        let found: Vec<_> = endpoints(&index).iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(found, [(ready, serving, terminating)], "{row}");
    }
}

#[test]
fn left_out_are_failed_and_succeeded_pods_and_those_without_an_address() {
    for publish in [false, true] {
        for (phase, counts) in [("Failed", 0), ("Succeeded", 0), ("Pending", 1), ("Running", 1), ("Unknown", 1)] {
            let service = service("web", json!({"spec": {"publishNotReadyAddresses": publish}}));
            let index = index([service, pod("a", "10.0.0.1", json!({"status": {"phase": phase}}))]);
            assert_eq!(endpoints(&index).len(), counts, "{phase}, publishNotReadyAddresses {publish}");
        }
        let service = service("web", json!({"spec": {"publishNotReadyAddresses": publish}}));
        let index = index([service, pod("a", "", json!({"status": {"podIPs": [], "podIP": ""}}))]);
        assert_eq!(endpoints(&index), []);
    }
}

#[test]
fn all_pod_addresses_of_the_family_asked() {
    let two = json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
    for (families, ips, expected) in [
        (json!(["IPv4"]), json!(["10.96.0.1"]), vec!["10.0.0.1"]),
        (json!(["IPv6"]), json!(["fd96::1"]), vec!["fd00::1"]),
        (json!(["IPv6", "IPv4"]), json!(["fd96::1", "10.96.0.1"]), vec!["10.0.0.1", "fd00::1"]),
        (Value::Null, json!(["10.96.0.1", "fd96::1"]), vec!["10.0.0.1", "fd00::1"]),
    ] {
        let service = service("web", json!({"spec": {"ipFamilies": families, "clusterIP": ips[0], "clusterIPs": ips}}));
        let index = index([service, pod("a", "10.0.0.1", two.clone())]);
        let found: Vec<String> = endpoints(&index).iter().map(|e| e.address.to_string()).collect();
        assert_eq!(found, expected);
    }
    let only = index([
        service("web", json!({})),
        pod("a", "10.0.0.1", json!({"status": {"podIPs": null, "podIP": "10.0.0.9"}})),
    ]);
    assert_eq!(shown(&only), ["10.0.0.9:8080 RS"], "status.podIP alone counts");
}

#[test]
fn node_and_zone_of_an_endpoint_are_its_pods() {
    let mut index = index([service("web", json!({})), pod("a", "10.0.0.1", json!({}))]);
    let place = |index: &Index| endpoints(index).iter().map(|e| (e.node.clone(), e.zone.clone())).next();
    assert_eq!(place(&index), Some((Some("n1".into()), Some("a".into()))));
    let dirty = index.apply(node("n1", "b", &[]));
    assert!(dirty.contains(&key("web")), "a zone that changes changes endpoints");
    assert_eq!(place(&index), Some((Some("n1".into()), Some("b".into()))));
    index.apply(node("n1", "", &[]));
    assert_eq!(place(&index), Some((Some("n1".into()), None)), "an empty zone says nothing");
}

#[test]
fn a_pod_on_an_unknown_node_is_skipped_until_the_node_comes() {
    let elsewhere = json!({"spec": {"nodeName": "n2"}});
    let mut index =
        index([service("web", json!({})), pod("a", "10.0.0.1", json!({})), pod("b", "10.0.0.2", elsewhere)]);
    assert_eq!(shown(&index), ["10.0.0.1:8080 RS"]);
    let dirty = index.apply(node("n2", "b", &[]));
    assert!(dirty.contains(&key("web")));
    assert_eq!(shown(&index), ["10.0.0.1:8080 RS", "10.0.0.2:8080 RS"]);
    let dirty = index.delete(&ObjectKey::new(Kind::Node, "", "n2"));
    assert!(dirty.contains(&key("web")));
    assert_eq!(shown(&index), ["10.0.0.1:8080 RS"]);
    let publishing = service("web", json!({"spec": {"publishNotReadyAddresses": true}}));
    index.apply(publishing);
    assert_eq!(endpoints(&index)[1].zone, None, "publishNotReadyAddresses: published without a zone");
    assert_eq!(endpoints(&index).len(), 2);
}

#[test]
fn a_target_port_by_name_is_the_first_container_port_with_name_and_protocol() {
    let port =
        |name: &str, number: u16, protocol: &str| json!({"name": name, "containerPort": number, "protocol": protocol});
    let by_name = json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "m", "port": 81, "targetPort": 9}]}});
    for (row, spec, expected) in [
        (
            "first with the name",
            json!({"containers": [{"name": "c", "ports": [port("web", 1, "TCP"), port("web", 2, "TCP")]}]}),
            1,
        ),
        (
            "and the protocol",
            json!({"containers": [{"name": "c", "ports": [port("web", 1, "UDP"), port("web", 2, "TCP")]}]}),
            2,
        ),
        (
            "app containers before sidecars",
            json!({
                "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [port("web", 1, "TCP")]}],
                "containers": [{"name": "c", "ports": [port("web", 2, "TCP")]}]
            }),
            2,
        ),
        (
            "sidecars count",
            json!({
                "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [port("web", 1, "TCP")]}]
            }),
            1,
        ),
        (
            "plain init containers don't; no match drops that port for that pod",
            json!({
                "initContainers": [{"name": "s", "ports": [port("web", 1, "TCP")]}]
            }),
            0,
        ),
    ] {
        let index = index([service("web", by_name.clone()), pod("a", "10.0.0.1", json!({"spec": spec}))]);
        assert_eq!(shown(&index), [format!("10.0.0.1:{expected},9 RS")], "{row}");
    }
}

#[test]
fn numbers_behind_a_name_may_differ_per_pod() {
    let with = |number: u16| json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": number}]}]}});
    let index = index([
        service("web", json!({"spec": {"ports": [{"port": 80, "targetPort": "web"}]}})),
        pod("a", "10.0.0.1", with(8080)),
        pod("b", "10.0.0.2", with(9090)),
        pod("c", "10.0.0.3", json!({})),
    ]);
    assert_eq!(shown(&index), ["10.0.0.1:8080 RS", "10.0.0.2:9090 RS"]);
}

#[test]
fn a_nil_selector_reads_slices_of_any_manager_and_merges_them() {
    let two = |addresses: Value| json!({"endpoints": addresses});
    let managed = json!({"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "endpoints": [{"addresses": ["10.0.0.3"]}]});
    let index = index([
        service("web", json!({"spec": {"selector": null}})),
        pod("a", "10.0.0.9", json!({})),
        slice(
            "s1",
            two(json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}])),
        ),
        slice("s2", two(json!([{"addresses": ["10.0.0.2"]}]))),
        slice("s3", managed),
        slice("s4", json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]})),
        slice("s5", json!({"ports": [], "endpoints": [{"addresses": ["10.0.0.4"]}]})),
        slice(
            "s6",
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "other"}}, "endpoints": [{"addresses": ["10.0.0.5"]}]}),
        ),
    ]);
    assert_eq!(shown(&index), ["10.0.0.1:8080 RS", "10.0.0.2:8080 RS", "10.0.0.3:8080 RS"]);
    assert_eq!(wrong(&index), [""; 0]);
}

#[test]
fn conditions_of_slices_nil_means_ready_serving_and_not_terminating() {
    for (conditions, expected) in [
        (Value::Null, "RS"),
        (json!({}), "RS"),
        (json!({"ready": false}), "S"),
        (json!({"ready": false, "serving": false}), ""),
        (json!({"ready": false, "serving": true, "terminating": true}), "ST"),
    ] {
        let endpoint = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
        let service = service("web", json!({"spec": {"selector": null}}));
        let index = index([service, slice("s", json!({"endpoints": endpoint}))]);
        assert_eq!(shown(&index), [format!("10.0.0.1:8080 {expected}")], "{conditions}");
    }
}

#[test]
fn slices_of_one_address_with_different_ports_add_up() {
    let endpoint = json!([{"addresses": ["10.0.0.1"]}]);
    let index = index([
        service(
            "web",
            json!({"spec": {"selector": null, "ports": [{"name": "http", "port": 80}, {"name": "m", "port": 81}]}}),
        ),
        slice("s1", json!({"endpoints": endpoint})),
        slice(
            "s2",
            json!({"endpoints": endpoint, "ports": [{"name": "m", "port": 9000}, {"name": "other", "port": 1}]}),
        ),
        slice("s3", json!({"endpoints": endpoint, "ports": [{"name": "m", "port": 9001, "protocol": "UDP"}]})),
    ]);
    assert_eq!(shown(&index), ["10.0.0.1:8080,9000 RS"]);
}

#[test]
fn a_selector_service_also_uses_slices_that_the_clusters_controller_does_not_manage() {
    let managed = json!({"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "endpoints": [{"addresses": ["10.0.0.3"]}]});
    let index = index([
        service("web", json!({})),
        pod("a", "10.0.0.1", json!({})),
        slice("mine", json!({"endpoints": [{"addresses": ["10.0.0.2"]}]})),
        slice("theirs", managed),
    ]);
    assert_eq!(shown(&index), ["10.0.0.1:8080 RS", "10.0.0.2:8080 RS"]);
}

#[test]
fn of_several_pods_with_one_address_the_non_terminating_then_the_ready_one_wins() {
    let gone = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let unready = json!({"status": {"conditions": []}});
    let both = |a: &Value, b: &Value| {
        let objects = [service("web", json!({})), pod("a", "10.0.0.1", a.clone()), pod("b", "10.0.0.1", b.clone())];
        shown(&index(objects))
    };
    assert_eq!(both(&gone, &unready), ["10.0.0.1:8080 "], "non-terminating before terminating");
    assert_eq!(both(&unready, &gone), ["10.0.0.1:8080 "]);
    assert_eq!(both(&unready, &json!({})), ["10.0.0.1:8080 RS"], "then ready");
    assert_eq!(both(&json!({}), &unready), ["10.0.0.1:8080 RS"]);
}

#[test]
fn vips_per_family_with_leading_zeros_as_decimal() {
    let index = index([service(
        "web",
        json!({
            "spec": {"type": "LoadBalancer", "externalIPs": ["203.000.113.007", "2001:db8::7"]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"ip": "198.51.100.3", "ipMode": "VIP"},
                {"hostname": "lb.example.org"}, {"ip": "2001:db8::1"}
            ]}}
        }),
    )]);
    let service = service_of(&index, "web").unwrap();
    let texts = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&service.external_ips), ["203.0.113.7"], "mixed families are filtered");
    assert_eq!(texts(&service.load_balancer_ips), ["198.51.100.1", "198.51.100.3"], "ipMode Proxy is not intercepted");
    assert_eq!(index.conditions().count(), 2, "{:?}", wrong(&index));
}

#[test]
fn no_vip_means_no_resource_and_labels_toggle_live() {
    for (row, over) in [
        (
            "ExternalName",
            json!({"spec": {"type": "ExternalName", "externalName": "example.org", "clusterIP": null, "clusterIPs": null}}),
        ),
        ("headless", json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})),
        ("label headless", json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}})),
        (
            "label service-proxy-name",
            json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "x"}}}),
        ),
        ("no ClusterIP yet", json!({"spec": {"clusterIP": "", "clusterIPs": null}})),
    ] {
        let mut index = index([service("web", json!({}))]);
        assert!(service_of(&index, "web").is_some());
        assert!(index.apply(service("web", over)).contains(&key("web")), "{row}");
        assert_eq!(service_of(&index, "web"), None, "{row}");
        assert!(!index.keys().contains(&key("web")), "{row}");
        assert!(index.apply(service("web", json!({}))).contains(&key("web")), "{row} and back");
        assert!(service_of(&index, "web").is_some() && index.keys().contains(&key("web")), "{row} and back");
    }
}

#[test]
fn pods_on_the_host_network_are_endpoints_but_not_pod_addresses() {
    let host = json!({"spec": {"hostNetwork": true}});
    let done = json!({"status": {"phase": "Succeeded"}});
    let gone = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let index = index([
        service("web", json!({})),
        pod("a", "10.0.0.7", json!({"status": {"podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}})),
        pod("b", "192.0.2.1", host),
        pod("c", "10.0.0.3", done),
        pod("d", "10.0.0.2", gone),
    ]);
    assert_eq!(shown(&index), ["10.0.0.2:8080 ST", "10.0.0.7:8080 RS", "192.0.2.1:8080 RS"]);
    let facts = node_of(&index, "n1").unwrap();
    let pods: Vec<String> = facts.pods.iter().map(ToString::to_string).collect();
    assert_eq!(pods, ["10.0.0.2", "10.0.0.7", "fd00::7"]);
    assert_eq!((facts.zone.as_deref(), facts.addresses[0].to_string()), (Some("a"), "192.0.2.1".to_owned()));
}

#[test]
fn the_nodes_of_pods_with_a_label_are_those_of_its_namespace() {
    let on = |node: &str| json!({"spec": {"nodeName": node}});
    let elsewhere = json!({"metadata": {"namespace": "other"}, "spec": {"nodeName": "n4"}});
    let unlike = json!({"metadata": {"labels": {"app": "db"}}, "spec": {"nodeName": "n5"}});
    let mut index = index([
        pod("a", "10.0.0.1", on("n1")),
        pod("b", "10.0.0.2", on("n3")),
        pod("c", "10.0.0.3", json!({"spec": {"nodeName": null}})),
        pod("d", "10.0.0.4", elsewhere),
        pod("e", "10.0.0.5", unlike),
    ]);
    let web = ("app".into(), "web".into());
    let names = |index: &Index| index.nodes_with("ns", &web).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&index), ["n1", "n3"], "whether or not the Node exists");
    index.delete(&ObjectKey::new(Kind::Pod, "ns", "a"));
    assert_eq!(names(&index), ["n3"]);
    assert!(index.nodes_with("none", &web).is_empty());
}

#[test]
fn http_is_asked_for_by_app_protocol_or_annotation_and_on_tcp_only() {
    let ports = json!([
        {"name": "a", "port": 1, "appProtocol": "http"}, {"name": "b", "port": 2, "appProtocol": "kubernetes.io/h2c"},
        {"name": "c", "port": 3, "protocol": "UDP", "appProtocol": "http"}, {"name": "d", "port": 4}
    ]);
    let http = |index: &Index| -> Vec<bool> {
        service_of(index, "web").unwrap().ports.iter().map(|port| port.app == AppProtocol::Http).collect()
    };
    let mut index = index([service("web", json!({"spec": {"ports": ports}}))]);
    assert_eq!(http(&index), [true, false, false, false]);
    index.apply(service(
        "web",
        json!({"metadata": {"annotations": {"sheave.io/l7": "http"}}, "spec": {"ports": ports}}),
    ));
    assert_eq!(http(&index), [true, true, false, true]);
}
