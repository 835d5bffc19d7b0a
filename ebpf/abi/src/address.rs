//! An IP address of either family as 16 big-endian bytes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 address in its v4-mapped form. Aligned to four bytes so that programs copy and compare it by
/// words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Address(pub [u8; 16]);

impl Address {
    /// From an IPv4 address's four bytes in network order.
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let b = &self.0;
        let words = (word(b, 0), word(b, 4), word(b, 8));
        words.0 == 0 && words.1 == 0 && words.2 == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// The last four bytes: all of an IPv4 address.
    #[inline(always)]
    pub const fn v4(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// From the standard library's form; a v4-mapped IPv6 address becomes the IPv4 address it stands for.
    pub const fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }

    /// To the standard library's form.
    pub const fn to_ip(&self) -> IpAddr {
        if self.is_v4() {
            let [a, b, c, d] = self.v4();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from_octets(self.0))
        }
    }
}

/// Four bytes as they lie in memory.
#[inline(always)]
const fn word(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_way_there_and_back() {
        for text in ["10.96.0.10", "0.0.0.0", "fd00::1", "::1", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from_ip(ip).to_ip(), ip);
            assert_eq!(Address::from_ip(ip).is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn a_v4_mapped_address_is_the_v4_address() {
        let mapped: IpAddr = "::ffff:10.96.0.10".parse().unwrap();
        assert_eq!(Address::from_ip(mapped), Address::from_v4([10, 96, 0, 10]));
    }
}
