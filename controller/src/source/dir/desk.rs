//! The API server's part for a folder: versions, ages, and the addresses of Services. Pure: it is told the folder, the
//! state and the time, and answers with events.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sheave_index::{Condition, Kind, Object, ObjectKey, Strings, facts};

use super::allocate::Pool;
use super::assign;
use super::folder::Folder;
use super::parse::Written;
use super::state::State;
use crate::source::Event;

/// The ServiceCIDR that stands for the ranges of the command line, named as an API server names its own.
const CIDR_NAME: &str = "kubernetes";

/// Turns the folder's objects into what an API server would have of them.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) state: State,
    pool: Pool,
    current: BTreeMap<ObjectKey, Object>,
    strings: Strings,
}

impl Desk {
    /// Remembered addresses are held from the start, so that nobody else gets them before their Services are read.
    pub(super) fn new(state: State, mut pool: Pool) -> Self {
        for (name, record) in &state.services {
            if let Some((namespace, name)) = name.split_once('/') {
                pool.hold(&ObjectKey::new(Kind::Service, namespace, name), assign::goods(record));
            }
        }
        let mut desk = Self { state, pool, current: BTreeMap::new(), strings: Strings::default() };
        if let Some(object) = desk.own_cidr() {
            desk.put(object);
        }
        desk
    }

    /// Takes in what changed in the folder. `now` is in seconds since 1970.
    pub(super) fn update(&mut self, folder: &Folder, touched: &BTreeSet<ObjectKey>, now: i64) -> Vec<Event> {
        self.pin(folder, touched);
        let mut events = Vec::new();
        for key in touched {
            let object = match folder.owner(key).map(|item| &item.written) {
                Some(Written::Service(service)) => Some(self.admit(key, service, now)),
                Some(Written::Facts(object)) => Some(object.clone()),
                None if is_own_cidr(key) => self.own_cidr(),
                None => None,
            };
            match object {
                Some(object) => events.extend(self.put(object).map(Event::Apply)),
                None => {
                    self.release(key);
                    if self.current.remove(key).is_some() {
                        events.push(Event::Delete(key.clone()));
                        events.push(Event::Seen(key.kind, self.state.next_version()));
                    }
                }
            }
        }
        events
    }

    /// Forgets remembered Services that the folder does not have. For after the first look at it.
    pub(super) fn forget_absent(&mut self, folder: &Folder) {
        let absent = self.state.services.keys().filter_map(|name| {
            let (namespace, name) = name.split_once('/')?;
            Some(ObjectKey::new(Kind::Service, namespace, name)).filter(|key| folder.owner(key).is_none())
        });
        for key in absent.collect::<Vec<_>>() {
            self.release(&key);
        }
    }

    /// The whole of one kind, as a list.
    pub(super) fn list(&self, kind: Kind) -> Vec<Event> {
        let of_kind = self.current.range(ObjectKey::new(kind, "", "")..).take_while(|(key, _)| key.kind == kind);
        let objects = of_kind.map(|(_, object)| Event::Apply(object.clone()));
        let end = Event::EndResync(kind, self.state.version);
        std::iter::once(Event::BeginResync(kind)).chain(objects).chain([end]).collect()
    }

    /// Addresses that files name are held before others are assigned, whatever the order of the files.
    fn pin(&mut self, folder: &Folder, touched: &BTreeSet<ObjectKey>) {
        for key in touched {
            if let Some(Written::Service(service)) = folder.owner(key).map(|item| &item.written) {
                let mut goods = assign::named(service);
                goods.extend(self.state.services.get(&record_key(key)).into_iter().flat_map(assign::goods));
                self.pool.hold(key, goods);
            }
        }
    }

    fn admit(&mut self, key: &ObjectKey, written: &Service, now: i64) -> Object {
        let slot = record_key(key);
        let uid = written.metadata.uid.clone();
        let old = self.state.services.get(&slot).filter(|old| old.uid == uid);
        let admitted = assign::admit(key, written, old, &self.pool, now);
        self.pool.hold(key, assign::goods(&admitted.record));
        if self.state.services.get(&slot) != Some(&admitted.record) {
            self.state.services.insert(slot, admitted.record);
            self.state.changed = true;
        }
        let mut object = facts::from_service(&admitted.service, &mut self.strings)
            .expect("the Service has name and namespace, because it was read with them");
        object.conditions.extend(admitted.conditions);
        object
    }

    fn release(&mut self, key: &ObjectKey) {
        if key.kind == Kind::Service {
            self.pool.hold(key, Vec::new());
            self.state.changed |= self.state.services.remove(&record_key(key)).is_some();
        }
    }

    /// Gives an object its version, unless nothing that is read of it has changed.
    fn put(&mut self, mut object: Object) -> Option<Object> {
        let old = self.current.get(&object.key);
        if old.is_some_and(|old| old.facts == object.facts && old.conditions == object.conditions) {
            return None;
        }
        object.version = self.state.next_version();
        self.current.insert(object.key.clone(), object.clone());
        Some(object)
    }

    fn own_cidr(&mut self) -> Option<Object> {
        let cidrs: Vec<String> = self.pool.cidrs().iter().map(ToString::to_string).collect();
        let metadata = ObjectMeta { name: Some(CIDR_NAME.to_owned()), ..ObjectMeta::default() };
        let spec = Some(ServiceCIDRSpec { cidrs: Some(cidrs).filter(|cidrs| !cidrs.is_empty()) });
        facts::from_service_cidr(&ServiceCIDR { metadata, spec, status: None }, &mut self.strings).ok()
    }
}

fn is_own_cidr(key: &ObjectKey) -> bool {
    key.kind == Kind::ServiceCidr && *key.name == *CIDR_NAME
}

fn record_key(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// A condition about an object's field.
pub(super) fn condition(key: &ObjectKey, field: &str, message: String, remedy: &str) -> Condition {
    Condition { object: key.clone(), field: field.to_owned(), message, remedy: remedy.to_owned() }
}
