//! The kernel's side for tests: maps in memory and one calling socket after another.

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use sheave_abi::{
    BACKEND_LEAVING, BackendRow, ConnectionRow, Counter, FlowKey, FlowRow, FrontendKey, FrontendRow, PEER_FLOWS,
    PeerRow, ReplyKey, ReplyRow, SlotKey,
};

use crate::{Env, Place, Tables, Transport, choose};

/// Maps, sockets, and which socket calls.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) frontends: RefCell<BTreeMap<FrontendKey, FrontendRow>>,
    pub(crate) slots: RefCell<BTreeMap<SlotKey, u32>>,
    pub(crate) backends: RefCell<BTreeMap<u32, BackendRow>>,
    pub(crate) flows: RefCell<BTreeMap<FlowKey, FlowRow>>,
    pub(crate) replies: RefCell<BTreeMap<ReplyKey, ReplyRow>>,
    pub(crate) connections: RefCell<BTreeMap<u64, ConnectionRow>>,
    pub(crate) peers: RefCell<BTreeMap<u64, PeerRow>>,
    pub(crate) counters: RefCell<BTreeMap<Counter, u64>>,
    pub(crate) targets: RefCell<BTreeMap<u32, u64>>,
    /// Cookie of the calling socket.
    pub(crate) caller: Cell<u64>,
    pub(crate) caller_is_own: Cell<bool>,
    pub(crate) caller_on_node: Cell<bool>,
    pub(crate) caller_on_loopback: Cell<bool>,
    pub(crate) no_memory: Cell<bool>,
    /// Frontend rows that are read before those in the map: what a program read just before a swap.
    pub(crate) stale: RefCell<Vec<FrontendRow>>,
    pub(crate) seed: Cell<u64>,
    pub(crate) next_id: Cell<u32>,
}

impl Fake {
    /// Points a frontend at a set of backends, as the reconciler does: backends that stay keep their ids, those that go are
    /// marked.
    pub(crate) fn serve(&self, to: &Place, transport: Transport, target: u32, set: &[Place], flags: u32) {
        let mut backends = self.backends.borrow_mut();
        let mut slots = self.slots.borrow_mut();
        let key = choose::key(to, transport);
        let generation = self.frontends.borrow().get(&key).map_or(0, |row| row.generation + 1);
        for row in backends.values_mut().filter(|row| row.target == target) {
            row.flags = BACKEND_LEAVING;
        }
        for (index, place) in (0..).zip(set) {
            let known =
                backends.iter().find(|(_, r)| r.target == target && r.address == place.address && r.port == place.port);
            let id = known.map_or_else(|| self.next_id.replace(self.next_id.get() + 1), |(id, _)| *id);
            backends.insert(id, BackendRow { address: place.address, target, port: place.port, flags: 0, pad: 0 });
            slots.insert(SlotKey { target, generation, index }, id);
        }
        let row = FrontendRow { target, generation, count: set.len() as u32, flags };
        self.frontends.borrow_mut().insert(key, row);
    }

    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        self.counters.borrow().get(&counter).copied().unwrap_or(0)
    }
}

impl Tables for Fake {
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendRow> {
        self.stale.borrow_mut().pop().or_else(|| self.frontends.borrow().get(key).copied())
    }

    fn slot(&self, key: &SlotKey) -> Option<u32> {
        self.slots.borrow().get(key).copied()
    }

    fn backend(&self, id: u32) -> Option<BackendRow> {
        self.backends.borrow().get(&id).copied()
    }

    fn flow(&self, key: &FlowKey) -> Option<FlowRow> {
        self.flows.borrow().get(key).copied()
    }

    fn set_flow(&self, key: &FlowKey, row: &FlowRow) -> bool {
        if !self.no_memory.get() {
            self.flows.borrow_mut().insert(*key, *row);
        }
        !self.no_memory.get()
    }

    fn reply(&self, key: &ReplyKey) -> Option<ReplyRow> {
        self.replies.borrow().get(key).copied()
    }

    fn set_reply(&self, key: &ReplyKey, row: &ReplyRow) -> bool {
        if !self.no_memory.get() {
            self.replies.borrow_mut().insert(*key, *row);
        }
        !self.no_memory.get()
    }

    fn connection(&self, cookie: u64) -> Option<ConnectionRow> {
        self.connections.borrow().get(&cookie).copied()
    }

    fn set_connection(&self, row: &ConnectionRow) {
        self.connections.borrow_mut().insert(row.cookie, *row);
    }

    fn peer(&self) -> Option<PeerRow> {
        self.peers.borrow().get(&self.caller.get()).copied()
    }

    fn set_peer(&self, row: &PeerRow) -> bool {
        if !self.no_memory.get() {
            self.peers.borrow_mut().insert(self.caller.get(), *row);
        }
        !self.no_memory.get()
    }

    fn mark_flows(&self) -> bool {
        if !self.no_memory.get() {
            self.peers.borrow_mut().entry(self.caller.get()).or_default().flags |= PEER_FLOWS;
        }
        !self.no_memory.get()
    }

    fn forget_peer(&self) {
        self.peers.borrow_mut().remove(&self.caller.get());
    }

    fn count(&self, counter: Counter) {
        *self.counters.borrow_mut().entry(counter).or_default() += 1;
    }

    fn count_target(&self, target: u32) {
        *self.targets.borrow_mut().entry(target).or_default() += 1;
    }
}

impl Env for Fake {
    fn random(&self) -> u32 {
        // Knuth's MMIX generator; its high half is good enough to be called chance.
        let next = self.seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed.set(next);
        (next >> 32) as u32
    }

    fn cookie(&self) -> u64 {
        self.caller.get()
    }

    fn in_node_netns(&self) -> bool {
        self.caller_on_node.get()
    }

    fn is_bound_to_loopback(&self) -> bool {
        self.caller_on_loopback.get()
    }

    fn is_own(&self) -> bool {
        self.caller_is_own.get()
    }
}
