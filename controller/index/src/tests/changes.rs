//! SEMANTICS section 8: what changes touches what it must, and nothing else.

use serde_json::json;
use sheave_model::ResourceKey;

use super::*;
use crate::{Kind, ObjectKey};

fn pod_key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Pod, "ns", name)
}

#[test]
fn a_pod_whose_labels_change_leaves_the_old_service_and_joins_the_new_one() {
    let api = service(
        "api",
        json!({"spec": {"selector": {"app": "api"}, "clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"]}}),
    );
    let mut index = index([service("web", json!({})), api, pod("a", "10.0.0.1", json!({}))]);
    assert_eq!(shown(&index).len(), 1);
    let dirty = index.apply(pod("a", "10.0.0.1", json!({"metadata": {"labels": {"app": "api"}}})));
    assert_eq!(Vec::from_iter(dirty), [key("api"), key("web")]);
    assert_eq!(shown(&index).len(), 0);
    assert_eq!(service_of(&index, "api").unwrap().endpoints.len(), 1);
}

#[test]
fn a_change_that_nobody_reads_touches_nothing() {
    let mut index = index([service("web", json!({})), pod("a", "10.0.0.1", json!({}))]);
    let labelled = json!({"metadata": {"labels": {"app": "web", "extra": "1"}, "annotations": {"x": "y"}}});
    assert_eq!(index.apply(pod("a", "10.0.0.1", labelled)).len(), 0);
    assert_eq!(index.apply(service("web", json!({"metadata": {"annotations": {"x": "y"}}}))).len(), 0);
}

#[test]
fn a_pod_that_becomes_unready_touches_its_service_and_not_its_node() {
    let mut index = index([service("web", json!({})), pod("a", "10.0.0.1", json!({}))]);
    let dirty = index.apply(pod("a", "10.0.0.1", json!({"status": {"conditions": []}})));
    assert_eq!(Vec::from_iter(dirty), [key("web")]);
}

#[test]
fn a_pod_that_comes_or_goes_touches_its_node() {
    let mut index = index([service("web", json!({}))]);
    let expected = [key("web"), ResourceKey::Node("n1".into())];
    assert_eq!(Vec::from_iter(index.apply(pod("a", "10.0.0.1", json!({})))), expected);
    assert_eq!(Vec::from_iter(index.delete(&pod_key("a"))), expected);
    assert_eq!(index.delete(&pod_key("a")).len(), 0, "twice is once");
}

#[test]
fn a_service_recreated_with_another_vip_is_one_change() {
    let mut index = index([service("web", json!({}))]);
    let dirty = index.apply(service("web", json!({"spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}})));
    assert_eq!(Vec::from_iter(dirty), [key("web")]);
    assert_eq!(service_of(&index, "web").unwrap().cluster_ips[0].to_string(), "10.96.0.9");
}

#[test]
fn what_a_list_does_not_name_is_deleted_at_its_end() {
    let mut index =
        index([service("web", json!({})), pod("a", "10.0.0.1", json!({})), pod("b", "10.0.0.2", json!({}))]);
    index.begin_resync(Kind::Pod);
    assert_eq!(index.apply(pod("b", "10.0.0.2", json!({}))).len(), 0);
    assert_eq!(shown(&index).len(), 2, "nothing goes before the end");
    let dirty = index.end_resync(Kind::Pod, 7);
    assert_eq!(Vec::from_iter(dirty), [key("web"), ResourceKey::Node("n1".into())]);
    assert_eq!(shown(&index), ["10.0.0.2:8080 RS"]);
    assert_eq!(index.end_resync(Kind::Pod, 9).len(), 0, "an end without a beginning deletes nothing");
    assert_eq!((index.len(Kind::Pod), index.len(Kind::Service)), (1, 1));
}

#[test]
fn the_view_is_the_newest_version_and_that_of_a_fresh_list() {
    let with = |version: &str| pod("a", "10.0.0.1", json!({"metadata": {"resourceVersion": version}}));
    let mut index = Index::default();
    index.apply(with("12"));
    index.apply(with("9"));
    index.seen(Kind::Pod, 15);
    index.seen(Kind::Pod, 14);
    assert_eq!(index.view()["Pod"], 15);
    index.begin_resync(Kind::Pod);
    index.apply(with("5"));
    index.end_resync(Kind::Pod, 6);
    assert_eq!(index.view()["Pod"], 6, "a restored backup goes back in time, and so does the view");
}

#[test]
fn when_all_is_deleted_nothing_stays() {
    let objects = [
        service("web", json!({})),
        service("web2", json!({})),
        pod("a", "10.0.0.1", json!({"spec": {"nodeName": "n9"}})),
        slice("s", json!({})),
    ];
    let keys: Vec<_> = objects.iter().map(|object| object.key.clone()).collect();
    let mut index = index(objects);
    for key in keys {
        index.delete(&key);
    }
    index.delete(&ObjectKey::new(Kind::Node, "", "n1"));
    assert!(index.is_empty() && index.spaces.is_empty() && index.nodes.is_empty() && index.pods_on.is_empty());
    assert_eq!(wrong(&index), [""; 0]);
    assert_eq!(index.keys(), [ResourceKey::Cluster]);
}
