//! The address plan of the test world, in one place. Nothing of it is routed anywhere outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 and an IPv6 address of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    /// Both, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    /// The one of this family.
    pub fn of(self, v6: bool) -> IpAddr {
        if v6 { IpAddr::V6(self.v6) } else { IpAddr::V4(self.v4) }
    }

    /// Whether this is one of the two.
    pub fn has(self, address: IpAddr) -> bool {
        self.both().contains(&address)
    }
}

/// The two Service ranges, as `--service-cidr` takes them.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:96::/112";

/// The router's address on the bridge, where the API server and the controller listen too.
pub const ROUTER: Pair = Pair { v4: Ipv4Addr::new(10, 88, 0, 1), v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1) };

/// Node `n`, from 1.
pub fn node(n: u8) -> Pair {
    bridge(0, 10 + n)
}

/// The `n`th machine that is no node, from 1; on the nodes' subnet, as on a VPC.
pub fn outside(n: u8) -> Pair {
    bridge(1, n)
}

fn bridge(third: u8, fourth: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 88, third, fourth),
        v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, third.into(), fourth.into()),
    }
}

/// The `k`th pod of node `n`.
pub fn pod(n: u8, k: u8) -> Pair {
    Pair { v4: Ipv4Addr::new(10, 244, n, k), v6: Ipv6Addr::new(0xfd00, 0x244, 0, n.into(), 0, 0, 0, k.into()) }
}

/// The pods of node `n`, as routes name them.
pub fn pod_ranges(n: u8) -> [String; 2] {
    [format!("10.244.{n}.0/24"), format!("fd00:244:0:{n:x}::/64")]
}

/// Ranges that an outside client sends to a node of its choice: cluster IPs, load balancer IPs and external IPs.
pub const VIP_RANGES: [&str; 6] =
    ["10.96.0.0/16", "fd00:96::/112", "10.89.0.0/16", "fd00:89::/64", "10.90.0.0/16", "fd00:90::/64"];

/// The `n`th ClusterIP; below the part of the range from which the API server assigns by itself.
pub fn cluster_ip(n: u16) -> Pair {
    vip(96, 0x96, n)
}

/// The `n`th load balancer IP.
pub fn load_balancer(n: u16) -> Pair {
    vip(89, 0x89, n)
}

/// The `n`th external IP.
pub fn external(n: u16) -> Pair {
    vip(90, 0x90, n)
}

fn vip(second: u8, group: u16, n: u16) -> Pair {
    let [high, low] = n.to_be_bytes();
    Pair { v4: Ipv4Addr::new(10, second, high, low), v6: Ipv6Addr::new(0xfd00, group, 0, 0, 0, 0, 0, n) }
}
