//! The index: every object's facts, what refers to what, and which resources a change touches. One task moves it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sheave_model::{ResourceKey, Service, ServiceKey};

use crate::claims::Claims;
use crate::condition::{Book, Origin};
use crate::facts::{CidrFacts, Class, Label, NodeObjectFacts, PodFacts, ServiceFacts, SliceFacts};
use crate::space::Space;
use crate::{Condition, Facts, Kind, Object, ObjectKey};

/// A selector that matches more Pods than this is probably a mistake, and is said to be one. It is the size from which the
/// cluster's own Endpoints objects are marked over-capacity.
pub const WIDE_SELECTOR: usize = 1_000;

/// Endpoints of one Service that are served; more are a condition of it. With names of usual lengths (below 60 bytes for a
/// node) a Service of this many still fits the 1 MiB chunk of the discovery stream, of which every subscriber has a copy under
/// way at each change, and its sets, which are swapped whole, fit the kernel's map of slots for several ports at once.
pub const MAX_ENDPOINTS: usize = 8_192;

type Dirty = BTreeSet<ResourceKey>;
/// Namespace and name.
type Named = (Arc<str>, Arc<str>);

/// See the crate's page for how it is used.
#[derive(Debug, Default)]
pub struct Index {
    pub(crate) spaces: HashMap<Arc<str>, Space>,
    pub(crate) nodes: HashMap<Arc<str>, Arc<NodeObjectFacts>>,
    pub(crate) cidrs: BTreeMap<Arc<str>, Arc<CidrFacts>>,
    /// Namespace and name of the Pods that name a Node, whether or not it exists.
    pub(crate) pods_on: HashMap<Arc<str>, BTreeSet<Named>>,
    /// Every object, with the round of lists in which it was last seen.
    seen: BTreeMap<ObjectKey, u32>,
    counts: BTreeMap<Kind, usize>,
    rounds: BTreeMap<Kind, Round>,
    versions: BTreeMap<Kind, u64>,
    claims: Claims,
    pub(crate) book: Book,
}

/// The lists of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    number: u32,
    open: bool,
    /// A list has ended: what is not there does not exist.
    complete: bool,
}

impl Index {
    /// Takes in a new or changed object. Returns the resources that may have changed.
    pub fn apply(&mut self, object: Object) -> BTreeSet<ResourceKey> {
        let Object { key, version, facts, conditions } = object;
        self.seen(key.kind, version);
        let round = self.rounds.get(&key.kind).map_or(0, |round| round.number);
        if self.seen.insert(key.clone(), round).is_none() {
            *self.counts.entry(key.kind).or_default() += 1;
        }
        self.book.set(&key, Origin::Object, conditions);
        match facts {
            Facts::Node(facts) => self.set_node(&key.name, Some(facts)),
            Facts::Namespace => Dirty::new(),
            Facts::ServiceCidr(facts) => self.set_cidr(&key.name, Some(facts)),
            Facts::Service(facts) => self.set_service(&key, Some(&facts)),
            Facts::EndpointSlice(facts) => self.set_slice(&key, Some(&facts)),
            Facts::Pod(facts) => self.set_pod(&key, Some(&facts)),
        }
    }

    /// Forgets an object. Returns the resources that may have changed.
    pub fn delete(&mut self, key: &ObjectKey) -> BTreeSet<ResourceKey> {
        if self.seen.remove(key).is_none() {
            return Dirty::new();
        }
        *self.counts.entry(key.kind).or_default() -= 1;
        let dirty = match key.kind {
            Kind::Node => self.set_node(&key.name, None),
            Kind::Namespace => Dirty::new(),
            Kind::ServiceCidr => self.set_cidr(&key.name, None),
            Kind::Service => self.set_service(key, None),
            Kind::EndpointSlice => self.set_slice(key, None),
            Kind::Pod => self.set_pod(key, None),
        };
        self.book.clear(key);
        dirty
    }

    /// A list of a kind starts: every object of it that is not applied before [`Index::end_resync`] is gone. A list that
    /// starts anew replaces one that never ended.
    pub fn begin_resync(&mut self, kind: Kind) {
        let round = self.rounds.entry(kind).or_default();
        round.number = round.number.wrapping_add(1);
        round.open = true;
    }

    /// A list of a kind ends. `version` is the list's own resourceVersion, 0 where it is unknown: it becomes the view of
    /// this kind even when it is older than what was seen, as it is after a restored backup.
    pub fn end_resync(&mut self, kind: Kind, version: u64) -> BTreeSet<ResourceKey> {
        let Some(round) = self.rounds.get_mut(&kind).filter(|round| round.open) else { return Dirty::new() };
        round.open = false;
        round.complete = true;
        let number = round.number;
        let first = ObjectKey::new(kind, "", "");
        let of_kind = self.seen.range(first..).take_while(|(key, _)| key.kind == kind);
        let gone: Vec<ObjectKey> = of_kind.filter(|(_, seen)| **seen != number).map(|(key, _)| key.clone()).collect();
        let mut dirty = Dirty::new();
        for key in gone {
            dirty.extend(self.delete(&key)); // not `append`, which rebuilds the whole set each time
        }
        if version != 0 {
            self.versions.insert(kind, version);
        }
        if kind == Kind::Node {
            let named: Vec<Arc<str>> = self.pods_on.keys().cloned().collect();
            named.iter().for_each(|node| self.check_node(node));
        }
        dirty
    }

    /// Notes that a version of a kind has been seen: a bookmark's, or a deleted object's. While a list of the kind is open
    /// nothing is noted: until its end, objects that were deleted before that version may still be held.
    pub fn seen(&mut self, kind: Kind, version: u64) {
        if self.rounds.get(&kind).is_some_and(|round| round.open) {
            return;
        }
        let newest = self.versions.entry(kind).or_default();
        *newest = version.max(*newest);
    }

    /// The newest resourceVersion for each kind, by the kind's name, that what is held is not older than.
    pub fn view(&self) -> BTreeMap<String, u64> {
        self.versions.iter().map(|(kind, version)| (kind.as_str().to_owned(), *version)).collect()
    }

    /// How many objects of a kind there are.
    pub fn len(&self, kind: Kind) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Whether there is no object at all.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Everything that is wrong now, ordered by object.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.book.all()
    }

    /// What is wrong with one object now.
    pub fn conditions_of(&self, key: &ObjectKey) -> impl Iterator<Item = &Condition> {
        self.book.of(key)
    }

    /// How many of the conditions of a kind's objects say that something is left out until it is mended; the others only
    /// inform.
    pub fn left_out(&self, kind: Kind) -> usize {
        self.book.left_out(kind)
    }

    /// The Nodes that a namespace's Pods with a label are on, whether or not these Nodes exist.
    pub fn nodes_with(&self, namespace: &str, label: &Label) -> BTreeSet<Arc<str>> {
        let pods = self.spaces.get(namespace).into_iter().flat_map(|space| space.with(label));
        pods.filter_map(|pod| pod.node.clone()).collect()
    }

    /// What has gone wrong since the last call, each once: for one log line and one count. Bounded; take it after each batch.
    pub fn take_new_conditions(&mut self) -> Vec<Condition> {
        self.book.take_news()
    }

    fn space(&mut self, namespace: &Arc<str>) -> &mut Space {
        self.spaces.entry(namespace.clone()).or_default()
    }

    fn drop_empty_space(&mut self, namespace: &str) {
        if self.spaces.get(namespace).is_some_and(Space::is_empty) {
            self.spaces.remove(namespace);
        }
    }

    fn set_cidr(&mut self, name: &Arc<str>, facts: Option<Arc<CidrFacts>>) -> Dirty {
        let old = self.cidrs.get(name).cloned();
        let changed = old != facts;
        match facts {
            Some(facts) => self.cidrs.insert(name.clone(), facts),
            None => self.cidrs.remove(name),
        };
        if changed { Dirty::from([ResourceKey::Cluster]) } else { Dirty::new() }
    }

    fn set_node(&mut self, name: &Arc<str>, facts: Option<Arc<NodeObjectFacts>>) -> Dirty {
        let old = self.nodes.get(name).cloned();
        let mut dirty = Dirty::new();
        if old != facts {
            dirty.insert(ResourceKey::Node(name.clone()));
        }
        // Endpoints carry their node's zone, and those of an unknown node are left out.
        let zone = |facts: &Option<Arc<NodeObjectFacts>>| facts.as_ref().map(|facts| facts.zone.clone());
        if zone(&old) != zone(&facts) {
            for (namespace, pod) in self.pods_on.get(name).into_iter().flatten() {
                let Some(space) = self.spaces.get(namespace) else { continue };
                let Some(pod) = space.pods.get(pod) else { continue };
                dirty.extend(space.selecting(pod).into_iter().map(|service| service_key(namespace, service)));
            }
        }
        match facts {
            Some(facts) => self.nodes.insert(name.clone(), facts),
            None => self.nodes.remove(name),
        };
        self.check_node(name);
        dirty
    }

    fn set_service(&mut self, key: &ObjectKey, facts: Option<&Arc<ServiceFacts>>) -> Dirty {
        let space = self.space(&key.namespace);
        let old = match facts {
            Some(facts) => space.put_service(&key.name, facts.clone()),
            None => space.take_service(&key.name),
        };
        self.drop_empty_space(&key.namespace);
        if old.as_ref() == facts {
            return Dirty::new();
        }
        let (before, after) = (old.as_deref().and_then(served), facts.map(|facts| &**facts).and_then(served));
        let told = self.claims.replace(before, after);
        for service in told {
            let object = ObjectKey::new(Kind::Service, service.namespace.clone(), service.name.clone());
            self.book.set(&object, Origin::Claim, self.claims.conditions(&service));
        }
        self.check_width(&key.namespace, &key.name);
        Dirty::from([service_key(&key.namespace, key.name.clone())])
    }

    fn set_slice(&mut self, key: &ObjectKey, facts: Option<&Arc<SliceFacts>>) -> Dirty {
        let service = |facts: Option<&Arc<SliceFacts>>| facts.and_then(|facts| facts.service.clone());
        let old = self.space(&key.namespace).set_slice(&key.name, facts.cloned());
        self.drop_empty_space(&key.namespace);
        if old.as_ref() == facts {
            return Dirty::new();
        }
        let touched = [service(old.as_ref()), service(facts)].into_iter().flatten();
        touched.map(|name| service_key(&key.namespace, name)).collect()
    }

    fn set_pod(&mut self, key: &ObjectKey, facts: Option<&Arc<PodFacts>>) -> Dirty {
        let space = self.space(&key.namespace);
        let old = space.set_pod(&key.name, facts.cloned());
        if old.as_ref() == facts {
            return Dirty::new();
        }
        let new = facts.map(|facts| &**facts);
        let selecting = |pod: Option<&PodFacts>| pod.map(|pod| space.selecting(pod)).unwrap_or_default();
        let (before, after) = (selecting(old.as_deref()), selecting(new));
        let mut touched: BTreeSet<Arc<str>> = before.symmetric_difference(&after).cloned().collect();
        for name in &touched {
            let Some(entry) = space.services.get_mut(name) else { continue };
            if after.contains(name) {
                entry.members.insert(key.name.clone());
            } else {
                entry.members.remove(&key.name);
            }
        }
        let resized = touched.clone();
        if !same_endpoint(old.as_deref(), new) {
            touched.extend(after);
        }
        self.drop_empty_space(&key.namespace);
        for name in &resized {
            self.check_width(&key.namespace, name);
        }
        let mut dirty: Dirty = touched.into_iter().map(|name| service_key(&key.namespace, name)).collect();
        dirty.extend(self.move_pod(key, old.as_deref(), new));
        dirty
    }

    /// Files a Pod under its Node. Returns the Nodes whose list of pod addresses changes.
    fn move_pod(&mut self, key: &ObjectKey, old: Option<&PodFacts>, new: Option<&PodFacts>) -> Dirty {
        let node = |pod: Option<&PodFacts>| pod.and_then(|pod| pod.node.clone());
        let (from, to) = (node(old), node(new));
        if from != to {
            let pod = (key.namespace.clone(), key.name.clone());
            if let Some(from) = &from
                && let Some(pods) = self.pods_on.get_mut(from)
            {
                pods.remove(&pod);
                if pods.is_empty() {
                    self.pods_on.remove(from);
                }
            }
            if let Some(to) = &to {
                self.pods_on.entry(to.clone()).or_default().insert(pod);
            }
            [&from, &to].into_iter().flatten().for_each(|node| self.check_node(node));
        }
        let own = |pod: Option<&PodFacts>| pod.map(|pod| pod.own_addresses().to_vec()).unwrap_or_default();
        if from == to && own(old) == own(new) {
            return Dirty::new();
        }
        let existing = [from, to].into_iter().flatten().filter(|node| self.nodes.contains_key(node));
        existing.map(ResourceKey::Node).collect()
    }

    /// Says so when a selector matches very many Pods.
    fn check_width(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let entry = self.spaces.get(namespace).and_then(|space| space.services.get(name));
        let many = entry.map_or(0, |entry| entry.members.len());
        let message = format!("matches more than {WIDE_SELECTOR} pods");
        let object = ObjectKey::new(Kind::Service, namespace.clone(), name.clone());
        let remedy = "narrow the selector, or split the Service".to_owned();
        let condition = Condition { object: object.clone(), field: "spec.selector".to_owned(), message, remedy };
        let conditions = if many > WIDE_SELECTOR { vec![condition] } else { Vec::new() };
        self.book.set(&object, Origin::Selector, conditions);
    }

    /// Says so when pods name a Node that does not exist; before the first list of Nodes nobody knows.
    fn check_node(&mut self, node: &Arc<str>) {
        let known = self.rounds.get(&Kind::Node).is_some_and(|round| round.complete);
        let missing = known && !self.nodes.contains_key(node) && self.pods_on.contains_key(node);
        let object = ObjectKey::new(Kind::Node, "", node.clone());
        let condition = Condition {
            object: object.clone(),
            field: "metadata.name".to_owned(),
            message: "pods name this Node and it does not exist; their endpoints wait for it".to_owned(),
            remedy: "create the Node, or mend spec.nodeName of its pods".to_owned(),
        };
        let conditions = if missing { vec![condition] } else { Vec::new() };
        self.book.set(&object, Origin::MissingNode, conditions);
    }
}

fn service_key(namespace: &Arc<str>, name: Arc<str>) -> ResourceKey {
    ResourceKey::Service(ServiceKey { namespace: namespace.clone(), name })
}

/// What proxies receive of a Service, if they do.
fn served(facts: &ServiceFacts) -> Option<&Service> {
    Some(&facts.service).filter(|_| facts.class == Class::Served)
}

/// Whether two versions of a Pod are the same endpoint to a Service that selects both.
fn same_endpoint(old: Option<&PodFacts>, new: Option<&PodFacts>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return false };
    let state = |pod: &PodFacts| (pod.ready, pod.terminating, pod.finished);
    state(old) == state(new) && old.node == new.node && old.ips == new.ips && old.ports == new.ports
}
