//! Addresses as Kubernetes writes them. Objects from before 1.22 may have leading zeros, which are read as decimal
//! (SEMANTICS section 6; KEP-4858 forbids them in new ones).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Reads an address. IPv4 octets may have leading zeros; an IPv4-mapped IPv6 address is the IPv4 address.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(|ip| ip.to_canonical());
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 16 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Reads `address/length`, blanks around it allowed; host bits are cleared.
pub fn parse_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let address = parse_address(address)?;
    let length = length.parse().ok()?;
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

/// Whether a frontend may have this address: what stands for "no address", "this machine", a link or a group may not.
pub(super) fn may_be_vip(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse_address("010.001.000.09"), Some(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 9))));
        assert_eq!(parse_prefix(" 010.0.0.7/8 "), "10.0.0.0/8".parse().ok());
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in
            ["", "None", "10.0.0", "10.0.0.0.1", "10.0.0.256", "10..0.1", "+1.2.3.4", "fe80::1%eth0", "1.2.3.4 "]
        {
            assert_eq!(parse_address(text), None, "{text:?}");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1"] {
            assert_eq!(parse_prefix(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_v4_one() {
        assert_eq!(parse_address("::ffff:10.0.0.1"), Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))));
        assert_eq!(parse_address("2001:db8::1"), "2001:db8::1".parse().ok());
    }
}
