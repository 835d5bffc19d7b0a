//! Any sequence of events leaves the index where its final objects alone would, and every resource that changed was named.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};
use sheave_model::{Resource, ResourceKey};

use super::reference::{Objects, resources};
use super::{node, pod, service, slice};
use crate::{Index, Kind, Object, ObjectKey};

#[derive(Clone, Debug)]
enum Step {
    Apply(Box<Object>),
    Delete(ObjectKey),
    Begin(Kind),
    /// With the list's version known or not.
    End(Kind, bool),
    Seen(Kind),
}

const KINDS: [Kind; 4] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::Pod];

fn any_service() -> impl Strategy<Value = Object> {
    let class = prop_oneof![
        6 => Just(json!({})),
        1 => Just(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})),
        1 => Just(json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "x"}}})),
    ];
    let selector = prop_oneof![
        Just(json!({"app": "web"})),
        Just(json!({"app": "web", "tier": "x"})),
        Just(json!({"app": "api"})),
        Just(Value::Null)
    ];
    let parts = ("(web|api|db)", 0..3_u8, selector, any::<bool>(), any::<bool>(), class, 2024..2027_u16);
    parts.prop_map(|(name, vip, selector, publish, both, class, year)| {
        let v4 = format!("10.96.0.{vip}");
        let families = if both { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
        let ips = if both { json!([v4, format!("fd96::{vip}")]) } else { json!([v4]) };
        let mut over = json!({
            "metadata": {"creationTimestamp": format!("{year}-01-01T00:00:00Z")},
            "spec": {
                "clusterIP": v4, "clusterIPs": ips, "ipFamilies": families, "selector": selector,
                "publishNotReadyAddresses": publish,
                "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "m", "port": 81, "targetPort": 9}]
            }
        });
        super::lay(&mut over, class);
        service(&name, over)
    })
}

fn any_pod() -> impl Strategy<Value = Object> {
    let labels = prop_oneof![
        Just(json!({"app": "web"})),
        Just(json!({"app": "api"})),
        Just(json!({"app": "web", "tier": "x"})),
        Just(json!({}))
    ];
    let phase = prop_oneof![4 => Just("Running"), 1 => Just("Failed")];
    let parts = ("[a-e]", 1..6_u8, labels, phase, any::<[bool; 4]>(), 1..4_u8);
    parts.prop_map(|(name, ip, labels, phase, [ready, gone, host, named], on)| {
        let ports = if named { json!([{"name": "web", "containerPort": 8000 + u16::from(ip)}]) } else { json!([]) };
        let mut over = json!({
            "metadata": {"labels": labels},
            "spec": {"nodeName": format!("n{on}"), "hostNetwork": host, "containers": [{"name": "c", "ports": ports}]},
            "status": {
                "phase": phase, "podIPs": [{"ip": format!("10.0.0.{ip}")}, {"ip": format!("fd00::{ip}")}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]
            }
        });
        if gone {
            over["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        relabelled(&name, &format!("10.0.0.{ip}"), over)
    })
}

/// A pod that has no labels, not the default ones, where `over` gives none.
fn relabelled(name: &str, ip: &str, over: Value) -> Object {
    let bare = over["metadata"]["labels"].get("app").is_none();
    let mut object = pod(name, ip, over);
    if bare && let crate::Facts::Pod(facts) = &mut object.facts {
        std::sync::Arc::make_mut(facts).labels = Box::default();
    }
    object
}

fn any_slice() -> impl Strategy<Value = Object> {
    let parts = ("[s-t]", "(web|api|db)", 1..9_u8, any::<[bool; 4]>());
    parts.prop_map(|(name, of, ip, [ready, gone, managed, metrics])| {
        let manager = if managed { "endpointslice-controller.k8s.io" } else { "me" };
        let labels = json!({"kubernetes.io/service-name": of, "endpointslice.kubernetes.io/managed-by": manager});
        let endpoint =
            json!({"addresses": [format!("10.0.0.{ip}")], "conditions": {"ready": ready, "terminating": gone}});
        let port = json!([{"name": if metrics { "m" } else { "http" }, "port": 9000}]);
        slice(&name, json!({"metadata": {"labels": labels}, "endpoints": [endpoint], "ports": port}))
    })
}

fn any_node() -> impl Strategy<Value = Object> {
    ("n[1-3]", "(a|b)", 1..4_u8).prop_map(|(name, zone, ip)| node(&name, &zone, &[&format!("192.0.2.{ip}")]))
}

fn any_step() -> impl Strategy<Value = Step> {
    let object = prop_oneof![3 => any_service(), 5 => any_pod(), 2 => any_slice(), 2 => any_node()];
    let object = object.boxed();
    let kind = proptest::sample::select(&KINDS[..]);
    prop_oneof![
        8 => object.clone().prop_map(|object| Step::Apply(Box::new(object))),
        3 => object.prop_map(|object| Step::Delete(object.key)),
        1 => kind.clone().prop_map(Step::Begin),
        1 => (kind.clone(), prop::bool::weighted(0.8)).prop_map(|(kind, known)| Step::End(kind, known)),
        1 => kind.prop_map(Step::Seen),
    ]
}

/// The objects there are, and by kind those not named yet by a list that has begun.
#[derive(Default)]
struct World {
    objects: Objects,
    unnamed: BTreeMap<Kind, BTreeSet<ObjectKey>>,
    view: BTreeMap<String, u64>,
}

impl World {
    /// Takes a step that brings version `at`, which grows from step to step.
    fn take(&mut self, step: &Step, at: u64) {
        match step {
            Step::Apply(object) => {
                self.reach(object.key.kind, at);
                self.unnamed.entry(object.key.kind).and_modify(|keys| {
                    keys.remove(&object.key);
                });
                self.objects.insert(object.key.clone(), (**object).clone());
            }
            Step::Delete(key) => {
                self.objects.remove(key);
            }
            Step::Begin(kind) => {
                let keys = self.objects.keys().filter(|key| key.kind == *kind).cloned().collect();
                self.unnamed.insert(*kind, keys);
            }
            Step::End(kind, known) => {
                let Some(unnamed) = self.unnamed.remove(kind) else { return };
                for key in unnamed {
                    self.objects.remove(&key);
                }
                if *known {
                    self.reach(*kind, at);
                }
            }
            Step::Seen(kind) => self.reach(*kind, at),
        }
    }

    /// While a list is open its kind stays where it was: what is held is a mixture of two moments.
    fn reach(&mut self, kind: Kind, at: u64) {
        if !self.unnamed.contains_key(&kind) {
            self.view.insert(kind.as_str().to_owned(), at);
        }
    }
}

fn feed(index: &mut Index, step: &Step, at: u64) -> BTreeSet<ResourceKey> {
    match step {
        Step::Apply(object) => index.apply(Object { version: at, ..(**object).clone() }),
        Step::Delete(key) => index.delete(key),
        Step::Begin(kind) => {
            index.begin_resync(*kind);
            BTreeSet::new()
        }
        Step::End(kind, known) => index.end_resync(*kind, if *known { at } else { 0 }),
        Step::Seen(kind) => {
            index.seen(*kind, at);
            BTreeSet::new()
        }
    }
}

fn computed(index: &Index) -> BTreeMap<ResourceKey, Resource> {
    index
        .keys()
        .into_iter()
        .map(|key| (key.clone(), index.compute(&key).expect("a key that is listed exists")))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_ends_where_its_objects_alone_would(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut index = Index::default();
        let mut world = World::default();
        let mut before = resources(&world.objects);
        for (step, at) in steps.iter().zip(1..) {
            let dirty = feed(&mut index, step, at);
            world.take(step, at);
            prop_assert_eq!(&index.view(), &world.view, "after {:?}", step);
            let after = resources(&world.objects);
            for key in before.keys().chain(after.keys()) {
                let changed = before.get(key) != after.get(key);
                prop_assert!(!changed || dirty.contains(key), "{key} changed by {step:?} and is not in {dirty:?}");
            }
            before = after;
        }
        prop_assert_eq!(&computed(&index), &before);
        let mut fresh = Index::default();
        for kind in KINDS {
            // What is missing is only known once a list has ended, as it may have in the sequence.
            if steps.iter().any(|step| matches!(step, Step::Begin(k) if *k == kind)) && index_completed(&steps, kind) {
                fresh.begin_resync(kind);
                fresh.end_resync(kind, 0);
            }
        }
        for object in world.objects.values() {
            fresh.apply(object.clone());
        }
        let told = |index: &Index| index.conditions().cloned().collect::<BTreeSet<_>>();
        prop_assert_eq!(told(&index), told(&fresh));
        for kind in KINDS {
            prop_assert_eq!(index.len(kind), fresh.len(kind));
        }
    }
}

/// Whether a list of the kind began and later ended.
fn index_completed(steps: &[Step], kind: Kind) -> bool {
    let begun = steps.iter().position(|step| matches!(step, Step::Begin(k) if *k == kind));
    begun.is_some_and(|at| steps[at..].iter().any(|step| matches!(step, Step::End(k, _) if *k == kind)))
}
