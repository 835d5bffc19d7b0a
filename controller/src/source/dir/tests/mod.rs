//! Tests of the folder source: what documents become, what an API server would do, and the disk.

mod admission;
mod disk;
mod documents;
mod looks;
mod property;

use std::collections::{BTreeMap, BTreeSet};

use sheave_index::{Facts, Index, Kind, Object, ObjectKey};
use sheave_model::{ResourceKey, ServiceKey};

use super::allocate::Pool;
use super::desk::Desk;
use super::folder::{Content, Folder};
use super::state::State;
use crate::source::Event;

/// The pure part: a folder with an API server's part behind it, and an index that follows their events.
pub(super) struct World {
    pub(super) folder: Folder,
    pub(super) desk: Desk,
    pub(super) index: Index,
    pub(super) now: i64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(State::new("id".into()), &["10.96.0.0/16", "fd96::/112"])
    }

    pub(super) fn with(state: State, cidrs: &[&str]) -> Self {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let desk = Desk::new(state, Pool::new(cidrs, 30_000..=30_099));
        Self { folder: Folder::default(), desk, index: Index::default(), now: 1_000 }
    }

    /// Writes a file, and returns the events.
    pub(super) fn write(&mut self, path: &str, text: &str) -> Vec<Event> {
        self.update(path, Content::Bytes(text.into()))
    }

    pub(super) fn remove(&mut self, path: &str) -> Vec<Event> {
        self.update(path, Content::Gone)
    }

    pub(super) fn update(&mut self, path: &str, content: Content) -> Vec<Event> {
        let touched = self.folder.update(path, content);
        assert!(self.folder.is_consistent(), "after {path}");
        self.take(&touched)
    }

    pub(super) fn take(&mut self, touched: &BTreeSet<ObjectKey>) -> Vec<Event> {
        let events = self.desk.update(&self.folder, touched, self.now);
        self.now += 1;
        for event in &events {
            match event.clone() {
                Event::Apply(object) => drop(self.index.apply(object)),
                Event::Delete(key) => drop(self.index.delete(&key)),
                Event::Seen(kind, version) => self.index.seen(kind, version),
                other => panic!("{other:?} is not for changes"),
            }
        }
        events
    }

    /// Everything there is now, by list.
    pub(super) fn listed(&self) -> BTreeMap<ObjectKey, Object> {
        let events = Kind::ALL.into_iter().flat_map(|kind| self.desk.list(kind));
        let objects = events.filter_map(|event| match event {
            Event::Apply(object) => Some((object.key.clone(), object)),
            _ => None,
        });
        objects.collect()
    }

    pub(super) fn service(&self, name: &str) -> sheave_model::Service {
        match &self.listed()[&ObjectKey::new(Kind::Service, "default", name)].facts {
            Facts::Service(facts) => facts.service.clone(),
            other => panic!("{other:?} is no Service"),
        }
    }

    pub(super) fn ips(&self, name: &str) -> Vec<String> {
        self.service(name).cluster_ips.iter().map(ToString::to_string).collect()
    }

    pub(super) fn node_ports(&self, name: &str) -> Vec<Option<u16>> {
        self.service(name).ports.iter().map(|port| port.node_port).collect()
    }

    pub(super) fn faults(&self) -> Vec<String> {
        self.folder.faults().iter().map(ToString::to_string).collect()
    }

    pub(super) fn conditions(&self) -> Vec<String> {
        self.index.conditions().map(ToString::to_string).collect()
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.index.compute(&ResourceKey::Service(ServiceKey::new("default", name))).is_some()
    }
}

/// A Service of port 80 with more lines in its spec, each indented by two.
pub(super) fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: 80\n{spec}")
}
