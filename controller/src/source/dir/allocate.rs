//! ClusterIPs and NodePorts that are free. Pure: who holds what is told to it; where a search starts depends on the asker's
//! name, so that an object which comes back usually gets what it had.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use sheave_index::ObjectKey;
use sheave_model::Protocol;

/// Addresses of one CIDR that are ever tried: a /108's worth, so that a search through a full /64 ends.
const MAX_ADDRESSES: u128 = 1 << 20;

/// Something of which each Service wants its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Good {
    /// A ClusterIP.
    Address(IpAddr),
    /// A NodePort.
    Port(Protocol, u16),
}

/// What there is to give, and who holds what. Several may hold one thing, because a file can name it twice.
#[derive(Debug)]
pub(super) struct Pool {
    cidrs: Vec<IpNet>,
    ports: RangeInclusive<u16>,
    held: HashMap<Good, usize>,
    holdings: BTreeMap<ObjectKey, Vec<Good>>,
}

impl Pool {
    pub(super) fn new(cidrs: Vec<IpNet>, ports: RangeInclusive<u16>) -> Self {
        Self { cidrs, ports, held: HashMap::new(), holdings: BTreeMap::new() }
    }

    /// Replaces what an object holds.
    pub(super) fn hold(&mut self, key: &ObjectKey, goods: Vec<Good>) {
        let old =
            if goods.is_empty() { self.holdings.remove(key) } else { self.holdings.insert(key.clone(), goods.clone()) };
        for good in goods {
            *self.held.entry(good).or_default() += 1;
        }
        for good in old.into_iter().flatten() {
            if let Some(count) = self.held.get_mut(&good) {
                *count -= 1;
                if *count == 0 {
                    self.held.remove(&good);
                }
            }
        }
    }

    /// Whether addresses of this family can be given.
    pub(super) fn has_family(&self, v4: bool) -> bool {
        self.cidrs.iter().any(|net| net.addr().is_ipv4() == v4)
    }

    /// The families that addresses are given of, the primary one first.
    pub(super) fn families(&self) -> impl Iterator<Item = bool> {
        self.cidrs.iter().map(|net| net.addr().is_ipv4())
    }

    /// The CIDRs that addresses are given from.
    pub(super) fn cidrs(&self) -> &[IpNet] {
        &self.cidrs
    }

    /// Whether a port may be a NodePort.
    pub(super) fn is_node_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// The range of NodePorts, for messages.
    pub(super) fn port_range(&self) -> String {
        format!("{}-{}", self.ports.start(), self.ports.end())
    }

    /// A ClusterIP that nobody holds. Like an API server's (KEP-3070) it comes from the upper part of the CIDR while there
    /// is one, so that the lower part is left to those who choose their own.
    pub(super) fn free_address(&self, asker: &str, v4: bool) -> Option<IpAddr> {
        let net = self.cidrs.iter().find(|net| net.addr().is_ipv4() == v4)?;
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let all = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        // Neither the network's own address nor, in IPv4, its broadcast address.
        let (first, end) = if v4 { (1, all.saturating_sub(1)) } else { (1, all.min(MAX_ADDRESSES)) };
        let end = end.min(MAX_ADDRESSES);
        let lower = (all / 16).clamp(16, 256).min(end);
        let lower = if all <= 16 { first } else { lower };
        let free = |offset: &u128| !self.held.contains_key(&Good::Address(nth(net, *offset)));
        let offset = search(asker, lower..end).find(free).or_else(|| search(asker, first..lower).find(free));
        offset.map(|offset| nth(net, offset))
    }

    /// A NodePort that nobody holds and that is not among those the asker has just `taken`.
    pub(super) fn free_port(&self, asker: &str, protocol: Protocol, taken: &[Good]) -> Option<u16> {
        let range = u128::from(*self.ports.start())..u128::from(*self.ports.end()) + 1;
        let ports = search(asker, range).filter_map(|port| u16::try_from(port).ok());
        let free = |good: &Good| !self.held.contains_key(good) && !taken.contains(good);
        ports.into_iter().find(|port| free(&Good::Port(protocol, *port)))
    }
}

fn nth(net: &IpNet, offset: u128) -> IpAddr {
    match net.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base).wrapping_add(offset as u32))),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base).wrapping_add(offset))),
    }
}

/// Every number of a range once, from a place that depends on the asker.
fn search(asker: &str, range: std::ops::Range<u128>) -> impl Iterator<Item = u128> {
    let count = range.end.saturating_sub(range.start);
    let start = if count == 0 { 0 } else { u128::from(hash(asker)) % count };
    (0..count).map(move |step| range.start + (start + step) % count)
}

/// FNV-1a: the same in every build, unlike the standard library's.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use sheave_index::Kind;

    use super::*;

    fn pool(cidr: &str) -> Pool {
        Pool::new(vec![cidr.parse().unwrap()], 30_000..=30_009)
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(Kind::Service, "ns", name)
    }

    #[test]
    fn every_address_of_a_small_cidr_is_given_once_and_then_none() {
        for (cidr, count) in
            [("10.0.0.0/28", 14), ("10.0.0.0/24", 254), ("fd00::/120", 255), ("10.0.0.0/31", 0), ("10.0.0.0/32", 0)]
        {
            let mut pool = pool(cidr);
            let mut given = BTreeSet::new();
            let v4 = pool.has_family(true);
            while let Some(ip) = pool.free_address("asker", v4) {
                assert!(pool.cidrs()[0].contains(&ip) && given.insert(ip), "{ip} out of {cidr}");
                pool.hold(&key(&ip.to_string()), vec![Good::Address(ip)]);
            }
            assert_eq!(given.len(), count, "{cidr}");
        }
    }

    #[test]
    fn the_lower_part_is_left_to_those_who_choose() {
        for n in 0..1000 {
            let Some(IpAddr::V4(ip)) = pool("10.96.0.0/16").free_address(&format!("s{n}"), true) else {
                panic!("there are many")
            };
            assert!(ip >= Ipv4Addr::new(10, 96, 1, 0), "{ip}");
        }
    }

    #[test]
    fn a_whole_ipv6_subnet_is_searched_in_bounded_time() {
        assert!(pool("fd00::/64").free_address("x", false).is_some());
    }

    #[test]
    fn ports_of_the_protocols_are_apart() {
        let mut pool = pool("10.0.0.0/24");
        for n in 0..10_u16 {
            let port = pool.free_port("x", Protocol::Tcp, &[]).unwrap();
            pool.hold(&key(&n.to_string()), vec![Good::Port(Protocol::Tcp, port)]);
        }
        assert_eq!(pool.free_port("x", Protocol::Tcp, &[]), None);
        assert!(pool.free_port("x", Protocol::Udp, &[]).is_some());
    }

    proptest! {
        #[test]
        fn what_is_free_is_what_nobody_holds(steps in prop::collection::vec((0..6_u8, prop::collection::vec(1..30_u8, 0..4)), 0..40)) {
            let mut pool = pool("10.0.0.0/27");
            let mut reference: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            for (name, hosts) in steps {
                let goods = hosts.iter().map(|host| Good::Address(IpAddr::from([10, 0, 0, *host]))).collect();
                pool.hold(&key(&name.to_string()), goods);
                reference.insert(name, hosts);
                let taken: BTreeSet<IpAddr> = reference.values().flatten().map(|host| IpAddr::from([10, 0, 0, *host])).collect();
                match pool.free_address("x", true) {
                    Some(ip) => prop_assert!(!taken.contains(&ip)),
                    None => prop_assert_eq!(taken.len(), 30),
                }
            }
        }
    }
}
