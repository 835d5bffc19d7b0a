//! One namespace: its Services, Pods and EndpointSlices, and the tables that find those which belong together.
//!
//! A selector is filed under one of its requirements, the rarest at that time, so a Pod looks only at the Services filed
//! under its own labels; a Service looks only at the Pods that carry its rarest requirement.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::facts::{Label, PodFacts, ServiceFacts, SliceFacts};

type Names = BTreeSet<Arc<str>>;

#[derive(Debug)]
pub(crate) struct ServiceEntry {
    pub(crate) facts: Arc<ServiceFacts>,
    /// The requirement that its selector is filed under.
    filed: Option<Label>,
    /// The Pods that its selector matches, whatever their state.
    pub(crate) members: Names,
}

#[derive(Debug, Default)]
pub(crate) struct Space {
    pub(crate) services: HashMap<Arc<str>, ServiceEntry>,
    pub(crate) pods: HashMap<Arc<str>, Arc<PodFacts>>,
    pub(crate) slices: HashMap<Arc<str>, Arc<SliceFacts>>,
    selectors: HashMap<Label, Names>,
    labelled: HashMap<Label, Names>,
    slices_of: HashMap<Arc<str>, Names>,
}

impl Space {
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.pods.is_empty() && self.slices.is_empty()
    }

    /// Stores a Service and returns what it was before.
    pub(crate) fn put_service(&mut self, name: &Arc<str>, facts: Arc<ServiceFacts>) -> Option<Arc<ServiceFacts>> {
        if let Some(entry) = self.services.get_mut(name)
            && entry.facts.selector == facts.selector
        {
            return Some(std::mem::replace(&mut entry.facts, facts));
        }
        let old = self.take_service(name);
        let filed = facts.selector.as_deref().and_then(|selector| {
            selector.iter().min_by_key(|label| self.selectors.get(*label).map_or(0, Names::len)).cloned()
        });
        if let Some(label) = &filed {
            self.selectors.entry(label.clone()).or_default().insert(name.clone());
        }
        let members = facts.selector.as_deref().map(|selector| self.matching(selector)).unwrap_or_default();
        self.services.insert(name.clone(), ServiceEntry { facts, filed, members });
        old
    }

    /// Removes a Service and returns what it was.
    pub(crate) fn take_service(&mut self, name: &str) -> Option<Arc<ServiceFacts>> {
        let entry = self.services.remove(name)?;
        if let Some(label) = &entry.filed {
            drop_from(&mut self.selectors, label, name);
        }
        Some(entry.facts)
    }

    /// The Pods that have every label of a selector.
    fn matching(&self, selector: &[Label]) -> Names {
        let rarest =
            selector.iter().map(|label| self.labelled.get(label)).min_by_key(|names| names.map_or(0, Names::len));
        let Some(Some(names)) = rarest else { return Names::new() };
        let matches = |name: &&Arc<str>| self.pods.get(*name).is_some_and(|pod| selector.iter().all(|l| pod.has(l)));
        names.iter().filter(matches).cloned().collect()
    }

    /// The Services whose selector matches a Pod.
    pub(crate) fn selecting(&self, pod: &PodFacts) -> Names {
        let filed = pod.labels.iter().filter_map(|label| self.selectors.get(label)).flatten();
        let matches = |name: &&Arc<str>| {
            let selector = self.services.get(*name).and_then(|entry| entry.facts.selector.as_deref());
            selector.is_some_and(|selector| selector.iter().all(|label| pod.has(label)))
        };
        filed.filter(matches).cloned().collect()
    }

    /// The Pods that have a label.
    pub(crate) fn with(&self, label: &Label) -> impl Iterator<Item = &PodFacts> + use<'_> {
        let names = self.labelled.get(label).into_iter().flatten();
        names.filter_map(|name| self.pods.get(name)).map(|pod| &**pod)
    }

    /// Stores a Pod (or, with `None`, removes it) and files it under its labels. Returns what it was.
    pub(crate) fn set_pod(&mut self, name: &Arc<str>, pod: Option<Arc<PodFacts>>) -> Option<Arc<PodFacts>> {
        let labels = pod.as_ref().map(|pod| pod.labels.clone()).unwrap_or_default();
        let old = match pod {
            Some(pod) => self.pods.insert(name.clone(), pod),
            None => self.pods.remove(name),
        };
        let before = old.as_ref().map(|old| &*old.labels).unwrap_or_default();
        for label in before.iter().filter(|label| !labels.contains(label)) {
            drop_from(&mut self.labelled, label, name);
        }
        for label in labels.iter().filter(|label| !before.contains(label)) {
            self.labelled.entry(label.clone()).or_default().insert(name.clone());
        }
        old
    }

    /// Stores a slice (or, with `None`, removes it) and files it under its Service. Returns what it was.
    pub(crate) fn set_slice(&mut self, name: &Arc<str>, slice: Option<Arc<SliceFacts>>) -> Option<Arc<SliceFacts>> {
        let service = slice.as_ref().and_then(|slice| slice.service.clone());
        let old = match slice {
            Some(slice) => self.slices.insert(name.clone(), slice),
            None => self.slices.remove(name),
        };
        let before = old.as_ref().and_then(|old| old.service.clone());
        if before != service {
            if let Some(before) = &before {
                drop_from(&mut self.slices_of, before, name);
            }
            if let Some(service) = service {
                self.slices_of.entry(service).or_default().insert(name.clone());
            }
        }
        old
    }

    /// The slices of a Service, by name.
    pub(crate) fn slices_of(&self, service: &str) -> impl Iterator<Item = &SliceFacts> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name)).map(|slice| &**slice)
    }
}

/// Takes a name off a list, and the list out of its table when it was the last.
fn drop_from<K: std::hash::Hash + Eq>(table: &mut HashMap<K, Names>, key: &K, name: &str) {
    if let Some(names) = table.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            table.remove(key);
        }
    }
}
