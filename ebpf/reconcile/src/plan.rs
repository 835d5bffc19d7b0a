//! The writes that make a target what it should be, in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use sheave_abi::{Address, BACKEND_LEAVING, BackendRow, FrontendKey, FrontendRow, SlotKey, SlotRow, TargetRow};
use sheave_model::{Protocol, Snapshot};

use crate::key::frontend_flags;
use crate::realized::Ids;
use crate::target::{Base, Target};
use crate::{MapOp, TargetKey};

/// What a target should be.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    /// Who takes new connections.
    pub(crate) backends: BTreeSet<SocketAddr>,
    /// Who else a UDP socket may go on sending to: an endpoint that is being deleted but still serves.
    pub(crate) standing: BTreeSet<SocketAddr>,
}

impl Desired {
    /// Of a target in a snapshot; nothing where its Service or port is gone.
    pub(crate) fn of(snapshot: &Snapshot, key: &TargetKey) -> Self {
        let Some(state) = snapshot.services.get(&key.service) else { return Self::default() };
        let Some(index) = state.service.ports.iter().position(|port| key.is_of(port)) else { return Self::default() };
        let family = state.backends.get(index).map(|port| if key.v4 { &port.v4 } else { &port.v6 });
        let backends = family.into_iter().flat_map(|list| list.iter().copied()).collect();
        let standing = match key.protocol {
            Protocol::Tcp => BTreeSet::new(), // nothing remembers a TCP backend
            Protocol::Udp => {
                let serving = state.service.endpoints.iter().filter(|e| e.serving && e.address.is_ipv4() == key.v4);
                serving.filter_map(|endpoint| endpoint.socket(index)).collect()
            }
        };
        Self { backends, standing }
    }
}

/// What to write. `prepare` is invisible until `commit`; then `base` is what frontends should name.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The target, backends and slots.
    pub(crate) prepare: Vec<MapOp>,
    /// Backends that `prepare` makes.
    pub(crate) new: BTreeSet<u32>,
    /// The set that `prepare` completes.
    pub(crate) base: Base,
    /// Marks on backends that left, for UDP sockets that remember them.
    pub(crate) after: Vec<MapOp>,
    /// Which members UDP sockets may go on using.
    pub(crate) standing: BTreeSet<u32>,
}

/// Plans a target's rows. A small change is made in place, slot by slot, so that it costs what it changes; if more than
/// half of the set changes, a new generation is written and swapped in by the frontends' rows.
pub(crate) fn plan(id: u32, desired: &Desired, target: &Target, ids: &mut Ids) -> Plan {
    let Some(key) = &target.key else { return Plan::default() };
    let mut plan = Plan::default();
    if !target.known && !target.wanted.is_empty() {
        plan.prepare.push(MapOp::PutTarget { id, row: TargetRow { identity: key.identity(), connections: 0 } });
    }
    let mut wanted = BTreeMap::new();
    for socket in &desired.backends {
        let known = target.ids.get(socket).copied();
        let backend = known.unwrap_or_else(|| ids.next());
        if known.is_none() {
            plan.new.insert(backend);
        }
        if known.and_then(|known| target.members.get(&known)).is_none_or(|member| member.leaving) {
            plan.prepare.push(put_backend(backend, id, socket, false));
        }
        wanted.insert(backend, *socket);
    }
    let remain = desired.standing.iter().filter_map(|socket| target.ids.get(socket).copied());
    plan.standing = remain.chain(wanted.keys().copied()).collect();
    slots(id, &wanted, target, &mut plan);
    for (&member, state) in &target.members {
        let leaves = !plan.standing.contains(&member);
        if key.protocol == Protocol::Udp && leaves != state.leaving && !wanted.contains_key(&member) {
            plan.after.push(put_backend(member, id, &state.socket, leaves));
        }
    }
    plan
}

/// The slots of the new set that aren't there yet.
fn slots(id: u32, wanted: &BTreeMap<u32, SocketAddr>, target: &Target, plan: &mut Plan) {
    let current = target.current();
    let list = rearrange(&current, wanted);
    let changed = list.iter().enumerate().filter(|&(index, id)| current.get(index) != Some(&Some(*id))).count();
    let in_place = changed * 2 <= list.len();
    let (generation, list) = if list.is_empty() || in_place {
        (target.base.generation, list)
    } else {
        (target.fresh_generation(), wanted.keys().copied().collect())
    };
    plan.base = Base { generation, count: list.len() as u32 };
    for (index, backend) in (0..).zip(list) {
        if target.slots.get(&(generation, index)).is_none_or(|slot| slot.backend != backend) {
            let key = SlotKey { target: id, generation, index };
            plan.prepare.push(MapOp::PutSlot { key, row: SlotRow { backend } });
        }
    }
}

/// The wanted backends in an order that differs from the current one in as few places as possible: those that stay keep
/// their slots, new ones take the place of those that go, then the last ones move into what is left open.
fn rearrange(current: &[Option<u32>], wanted: &BTreeMap<u32, SocketAddr>) -> Vec<u32> {
    let mut stay = BTreeSet::new();
    let mut list: Vec<Option<u32>> =
        current.iter().map(|id| id.filter(|id| wanted.contains_key(id) && stay.insert(*id))).collect();
    let mut new = wanted.keys().copied().filter(|id| !stay.contains(id));
    for place in list.iter_mut().filter(|place| place.is_none()) {
        *place = new.next();
    }
    list.extend(new.map(Some));
    let mut index = 0;
    while index < list.len() {
        if list[index].is_none() {
            list.swap_remove(index);
        } else {
            index += 1;
        }
    }
    list.into_iter().flatten().collect()
}

fn put_backend(id: u32, target: u32, socket: &SocketAddr, leaving: bool) -> MapOp {
    let row = BackendRow {
        address: Address::from_ip(socket.ip()),
        target,
        port: socket.port().to_be_bytes(),
        flags: if leaving { BACKEND_LEAVING } else { 0 },
        pad: 0,
    };
    MapOp::PutBackend { id, row }
}

impl Plan {
    /// What takes back the first `done` operations of `prepare`, as far as no program can have seen them: a full map must
    /// not stay full of rows that lead nowhere. The rest is swept.
    pub(crate) fn undo(&self, done: usize, base: Base) -> Vec<MapOp> {
        let back = |op: &MapOp| match *op {
            MapOp::PutSlot { key, .. } if key.generation != base.generation => Some(MapOp::DeleteSlot { key }),
            MapOp::PutBackend { id, row } if self.base.generation != base.generation && self.new.contains(&id) => {
                Some(MapOp::DeleteBackend { id, target: row.target })
            }
            _ => None,
        };
        self.prepare.iter().take(done).rev().filter_map(back).collect()
    }
}

/// The row that points a frontend at a target's set.
pub(crate) fn commit(key: &FrontendKey, target: u32, base: Base) -> FrontendRow {
    FrontendRow { target, generation: base.generation, count: base.count, flags: frontend_flags(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(ids: &[u32]) -> BTreeMap<u32, SocketAddr> {
        ids.iter().map(|&id| (id, SocketAddr::from(([10, 0, 0, 1], 80)))).collect()
    }

    #[test]
    fn those_that_stay_keep_their_slots() {
        let current = [Some(1), Some(2), Some(3), Some(4)];
        assert_eq!(rearrange(&current, &wanted(&[1, 2, 3, 4])), [1, 2, 3, 4]);
        assert_eq!(rearrange(&current, &wanted(&[1, 3, 4, 9])), [1, 9, 3, 4]);
        assert_eq!(rearrange(&current, &wanted(&[1, 3, 4])), [1, 4, 3]);
        assert_eq!(rearrange(&current, &wanted(&[4])), [4]);
        assert_eq!(rearrange(&current, &wanted(&[1, 2, 3, 4, 5])), [1, 2, 3, 4, 5]);
        assert_eq!(rearrange(&[Some(1), None, Some(1)], &wanted(&[1])), [1]);
        assert_eq!(rearrange(&current, &wanted(&[])), Vec::<u32>::new());
    }
}
