//! What the sets of our table hold, as a function of a snapshot, and what changes between two snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use sheave_model::{AppProtocol, Frontend, FrontendKind, Protocol, Snapshot, claims};

/// A set of our table, in one of two families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Set {
    /// What it is for.
    pub(crate) role: Role,
    /// Its family.
    pub(crate) v4: bool,
}

/// What a set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Frontends that the listeners serve: address, protocol, port.
    Frontends,
    /// Frontends without any endpoint.
    Refused,
    /// ClusterIPs, whose other ports and protocols are refused.
    Vips,
    /// ServiceCIDRs, whose other addresses are dropped.
    Cidrs,
}

impl Set {
    /// Every set.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let roles = [Role::Frontends, Role::Refused, Role::Vips, Role::Cidrs];
        roles.into_iter().flat_map(|role| [true, false].map(|v4| Self { role, v4 }))
    }

    /// Its name in the kernel.
    pub(crate) const fn name(self) -> &'static str {
        match (self.role, self.v4) {
            (Role::Frontends, true) => "frontends4",
            (Role::Frontends, false) => "frontends6",
            (Role::Refused, true) => "refused4",
            (Role::Refused, false) => "refused6",
            (Role::Vips, true) => "vips4",
            (Role::Vips, false) => "vips6",
            (Role::Cidrs, true) => "cidrs4",
            (Role::Cidrs, false) => "cidrs6",
        }
    }

    /// Whether its elements are a frontend's three parts, and not an address alone.
    pub(crate) const fn triple(self) -> bool {
        matches!(self.role, Role::Frontends | Role::Refused)
    }
}

/// One element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    /// Of a set of frontends.
    Frontend(Frontend),
    /// Of a set of addresses.
    Address(IpAddr),
    /// From one address up to the last; they never overlap.
    Range(IpAddr, IpAddr),
}

impl Element {
    /// The key as the rules build it: each part padded to words of four bytes.
    pub(crate) fn key(&self) -> Vec<u8> {
        match self {
            Self::Frontend(frontend) => {
                let mut key = octets(frontend.address.ip());
                key.extend_from_slice(&[frontend.protocol.number(), 0, 0, 0]);
                key.extend_from_slice(&frontend.address.port().to_be_bytes());
                key.extend_from_slice(&[0, 0]);
                key
            }
            Self::Address(ip) | Self::Range(ip, _) => octets(*ip),
        }
    }

    /// Of a range, the address behind its last one, unless the family ends there.
    pub(crate) fn end(&self) -> Option<Vec<u8>> {
        match self {
            Self::Range(_, last) => after(*last).map(octets),
            _ => None,
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// What to remove from the sets and what to add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Elements that are there.
    pub(crate) remove: BTreeMap<Set, BTreeSet<Element>>,
    /// Elements that are not.
    pub(crate) add: BTreeMap<Set, BTreeSet<Element>>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    fn move_from_to(&mut self, element: Element, old: Option<Set>, new: Option<Set>) {
        if old == new {
            return;
        }
        if let Some(set) = old {
            self.remove.entry(set).or_default().insert(element.clone());
        }
        if let Some(set) = new {
            self.add.entry(set).or_default().insert(element);
        }
    }
}

/// The set that a frontend belongs to. One that speaks HTTP is served without endpoints too: its listener answers 503.
fn set_of(snapshot: &Snapshot, frontend: &Frontend) -> Option<Set> {
    let (route, state) = snapshot.lookup(frontend)?;
    let backends = state.backends.get(route.port)?.of(frontend.address.ip());
    let http = state.service.ports.get(route.port).is_some_and(|port| port.app == AppProtocol::Http);
    let role = if backends.is_empty() && !http { Role::Refused } else { Role::Frontends };
    Some(Set { role, v4: frontend.address.is_ipv4() })
}

/// Whether an address is some Service's ClusterIP.
fn is_cluster_ip(snapshot: &Snapshot, ip: IpAddr) -> bool {
    let first = Frontend::new(ip, 0, Protocol::Tcp);
    let last = Frontend::new(ip, u16::MAX, Protocol::Udp);
    snapshot.frontends.range(first..=last).any(|(_, route)| route.kind == FrontendKind::ClusterIp)
}

/// What changes between two snapshots. Costs what differs between them, not what they hold.
pub(crate) fn changes(old: &Snapshot, new: &Snapshot) -> Changes {
    let mut frontends = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for item in old.frontends.diff(&new.frontends) {
        let (frontend, before, after) = match item {
            DiffItem::Add(frontend, route) | DiffItem::Remove(frontend, route) => (frontend, route, route),
            DiffItem::Update { old: (frontend, before), new: (_, after) } => (frontend, before, after),
        };
        frontends.insert(*frontend);
        // A node's own address has all NodePorts, which nobody has to look through for each that comes.
        if [before, after].iter().any(|route| route.kind == FrontendKind::ClusterIp) {
            addresses.insert(frontend.address.ip());
        }
    }
    let node = |s: &Snapshot| s.node.as_ref().map(|(_, node)| node.clone()).unwrap_or_default();
    for item in old.services.diff(&new.services) {
        // Services that come or go change the frontends above; endpoints and protocols change only in those that stay.
        if let DiffItem::Update { new: (_, state), .. } = item {
            frontends.extend(claims(&state.service, &node(new)).into_iter().map(|claim| claim.frontend));
        }
    }
    let mut changes = Changes::default();
    for frontend in frontends {
        changes.move_from_to(Element::Frontend(frontend), set_of(old, &frontend), set_of(new, &frontend));
    }
    for ip in addresses {
        let set = |is: bool| is.then_some(Set { role: Role::Vips, v4: ip.is_ipv4() });
        changes.move_from_to(Element::Address(ip), set(is_cluster_ip(old, ip)), set(is_cluster_ip(new, ip)));
    }
    let (before, after) = (cidrs(old), cidrs(new));
    let set = |range: &Element| {
        let v4 = matches!(range, Element::Range(IpAddr::V4(_), _));
        Some(Set { role: Role::Cidrs, v4 })
    };
    before.difference(&after).for_each(|range| changes.move_from_to(range.clone(), set(range), None));
    after.difference(&before).for_each(|range| changes.move_from_to(range.clone(), None, set(range)));
    changes
}

/// The ServiceCIDRs without those that lie inside others.
fn cidrs(snapshot: &Snapshot) -> BTreeSet<Element> {
    let nets = snapshot.cluster.iter().flat_map(|(_, facts)| facts.service_cidrs.iter().copied());
    let range = |net: IpNet| Element::Range(net.network(), net.broadcast());
    IpNet::aggregate(&nets.collect::<Vec<_>>()).into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userspace::testing::{self, Build as _, service};
    use proptest::prelude::*;
    use sheave_model::Store;

    /// Everything a snapshot's sets hold, computed from scratch.
    fn full(snapshot: &Snapshot) -> BTreeMap<Set, BTreeSet<Element>> {
        let mut sets = BTreeMap::<Set, BTreeSet<Element>>::new();
        let mut put = |role, v4, element| sets.entry(Set { role, v4 }).or_default().insert(element);
        for (frontend, route) in &snapshot.frontends {
            let v4 = frontend.address.is_ipv4();
            let empty = snapshot.backends(frontend).is_none_or(|backends| backends.is_empty());
            let http = snapshot.services[&route.service].service.ports[route.port].app == AppProtocol::Http;
            let role = if empty && !http { Role::Refused } else { Role::Frontends };
            put(role, v4, Element::Frontend(*frontend));
            if route.kind == FrontendKind::ClusterIp {
                put(Role::Vips, v4, Element::Address(frontend.address.ip()));
            }
        }
        for element in cidrs(snapshot) {
            put(Role::Cidrs, matches!(element, Element::Range(IpAddr::V4(_), _)), element);
        }
        sets
    }

    fn apply(sets: &mut BTreeMap<Set, BTreeSet<Element>>, changes: Changes) {
        for (set, elements) in changes.remove {
            for element in elements {
                assert!(sets.get_mut(&set).is_some_and(|s| s.remove(&element)), "{element:?} was not in {set:?}");
            }
        }
        for (set, elements) in changes.add {
            for element in elements {
                assert!(sets.entry(set).or_default().insert(element), "an element was there already");
            }
        }
        sets.retain(|_, elements| !elements.is_empty());
    }

    #[test]
    fn keys_have_their_parts_in_words() {
        let element = Element::Frontend(Frontend::new("10.96.0.10".parse().unwrap(), 53, Protocol::Udp));
        assert_eq!(element.key(), [10, 96, 0, 10, 17, 0, 0, 0, 0, 53, 0, 0]);
        let six = Element::Frontend(Frontend::new("fd00::1".parse().unwrap(), 53, Protocol::Udp));
        assert_eq!(six.key().len(), 24);
    }

    #[test]
    fn a_range_ends_behind_its_last_address_unless_the_family_does() {
        let end = |net: &str| {
            let net: IpNet = net.parse().unwrap();
            Element::Range(net.network(), net.broadcast()).end()
        };
        assert_eq!(end("10.96.0.0/16"), Some(vec![10, 97, 0, 0]));
        assert_eq!(end("240.0.0.0/4"), None);
    }

    #[test]
    fn a_frontend_without_endpoints_is_refused_but_for_http() {
        let mut store = Store::default();
        store.apply(testing::delta(vec![service("a", "10.96.0.1").port(80), service("h", "10.96.0.2").http(80)]));
        let snapshot = store.snapshot();
        let role = |ip: &str| set_of(snapshot, &Frontend::new(ip.parse().unwrap(), 80, Protocol::Tcp)).unwrap().role;
        assert_eq!(role("10.96.0.1"), Role::Refused);
        assert_eq!(role("10.96.0.2"), Role::Frontends);
    }

    proptest! {
        /// Whatever the steps, applying the differences leaves what a computation from scratch gives.
        #[test]
        fn differences_add_up(steps in prop::collection::vec(testing::any_delta(), 1..12), skip in any::<u16>()) {
            let mut store = Store::default();
            let mut seen = Snapshot::default();
            let mut sets = full(&seen);
            for (index, delta) in steps.into_iter().enumerate() {
                store.apply(delta);
                if skip & (1 << index) != 0 {
                    continue; // a reader may miss snapshots
                }
                apply(&mut sets, changes(&seen, store.snapshot()));
                seen = store.snapshot().clone();
                prop_assert_eq!(&sets, &full(&seen));
            }
        }
    }
}
