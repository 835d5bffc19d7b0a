//! Datagrams, their fragments and "port unreachable" as bytes of IP packets: RFC 768, 791, 792, 4443, 8200.
//!
//! Replies to clients carry a frontend's address and port as their source. They are sent through a raw socket, because a
//! bound one per frontend would hold a NodePort that an application may bind, and a descriptor each.

use std::net::{IpAddr, SocketAddr};

/// Bytes of a UDP header.
const UDP: usize = 8;
/// Hop limit of what is sent, as Linux has it for its own.
const HOPS: u8 = 64;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_ICMP6: u8 = 58;
/// The MTU that every IPv6 link has, and nearly every IPv4 one.
const LEAST_MTU: usize = 1280;

/// An IP header and what follows it up to the payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    bytes: [u8; 48],
    length: usize,
}

impl Head {
    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn new(parts: &[&[u8]]) -> Self {
        let mut head = Self { bytes: [0; 48], length: 0 };
        for part in parts {
            head.bytes[head.length..head.length + part.len()].copy_from_slice(part);
            head.length += part.len();
        }
        head
    }
}

/// The headers of a datagram; both addresses are of one family. The kernel fills in IPv4's own checksum.
pub(crate) fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Head {
    let length = UDP + payload.len();
    let mut udp = [0; UDP];
    udp[0..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    let sum = checksum(&[&pseudo(from.ip(), to.ip(), PROTOCOL_UDP, length), &udp, payload]);
    // 0 would mean that there is none.
    let sum = if sum == 0 { u16::MAX } else { sum };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    Head::new(&[ip(from.ip(), to.ip(), PROTOCOL_UDP, length, [0; 4]).as_bytes(), &udp])
}

/// An IP header before `length` bytes. `fragment` is IPv4's identification, flags and offset.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, length: usize, fragment: [u8; 4]) -> Head {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = ((20 + length) as u16).to_be_bytes();
            let head = [&[0x45, 0], &total[..], &fragment, &[HOPS, protocol, 0, 0], &from.octets(), &to.octets()];
            Head::new(&head)
        }
        (from, to) => {
            let payload = (length as u16).to_be_bytes();
            Head::new(&[&[0x60, 0, 0, 0], &payload, &[protocol, HOPS], &six(from), &six(to)])
        }
    }
}

fn six(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// What a checksum covers besides the packet's own bytes.
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&six(from));
            out.extend_from_slice(&six(to));
        }
    }
    out.extend_from_slice(&(length as u32).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, protocol]);
    out
}

/// RFC 1071: the complement of the ones' complement sum. Every piece but the last has an even length. Words of four bytes
/// in the machine's order, because the sum is the same in any; the result is in network order.
fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for piece in pieces {
        let (words, rest) = piece.as_chunks::<4>();
        sum += words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::from_be_bytes((!(sum as u16)).to_ne_bytes())
}

/// The same datagram as packets that fit every link. `id` tells the fragments of one datagram from another's.
pub(crate) fn fragments(from: SocketAddr, to: SocketAddr, payload: &[u8], id: u32) -> Vec<Vec<u8>> {
    let head = datagram(from, to, payload);
    let v4 = from.is_ipv4();
    let whole = [&head.as_bytes()[if v4 { 20 } else { 40 }..], payload].concat();
    let room = if v4 { LEAST_MTU - 20 } else { LEAST_MTU - 48 } / 8 * 8;
    let count = whole.len().div_ceil(room);
    let pieces = whole.chunks(room).enumerate().map(|(index, piece)| {
        let more = u16::from(index + 1 < count);
        let units = (index * room / 8) as u16;
        let head = if v4 {
            // The kernel would replace an identification of 0.
            let id = ((id as u16).max(1)).to_be_bytes();
            let offset = (more << 13 | units).to_be_bytes();
            let fragment = [id[0], id[1], offset[0], offset[1]];
            ip(from.ip(), to.ip(), PROTOCOL_UDP, piece.len(), fragment)
        } else {
            let offset = (units << 3 | more).to_be_bytes();
            let outer = ip(from.ip(), to.ip(), PROTOCOL_FRAGMENT, 8 + piece.len(), [0; 4]);
            Head::new(&[outer.as_bytes(), &[PROTOCOL_UDP, 0], &offset, &id.to_be_bytes()])
        };
        [head.as_bytes(), piece].concat()
    });
    pieces.collect()
}

/// What a client gets whose datagram from `client` to `frontend` found no open port: the error that the backend's machine
/// sent, as if it came from the frontend.
pub(crate) fn unreachable(client: SocketAddr, frontend: SocketAddr) -> Vec<u8> {
    let (from, to) = (frontend.ip(), client.ip());
    let quoted = datagram(client, frontend, &[]);
    let mut quoted = quoted.as_bytes().to_vec();
    let (kind, code, protocol) = if from.is_ipv4() { (3, 3, PROTOCOL_ICMP) } else { (1, 4, PROTOCOL_ICMP6) };
    if from.is_ipv4() {
        let sum = checksum(&[&quoted[..20]]);
        quoted[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let mut icmp = [&[kind, code, 0, 0, 0, 0, 0, 0], quoted.as_slice()].concat();
    let sum = if from.is_ipv4() {
        checksum(&[&icmp])
    } else {
        checksum(&[&pseudo(from, to, PROTOCOL_ICMP6, icmp.len()), &icmp])
    };
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    [ip(from, to, protocol, icmp.len(), [0; 4]).as_bytes(), &icmp].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// RFC 1071, two bytes at a time.
    fn slow_checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn a_datagram_of_ipv4_is_as_rfc_768_says() {
        let head = datagram(socket("10.96.0.10:53"), socket("10.1.0.5:40000"), b"hi");
        let bytes = head.as_bytes();
        assert_eq!(bytes[..10], [0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17]);
        assert_eq!(bytes[12..20], [10, 96, 0, 10, 10, 1, 0, 5]);
        assert_eq!(bytes[20..26], [0, 53, 0x9c, 0x40, 0, 10]);
    }

    /// Puts IPv4 or IPv6 fragments together again, as a receiver does.
    fn reassembled(packets: &[Vec<u8>], v4: bool) -> Vec<u8> {
        let mut whole = Vec::new();
        for (index, packet) in packets.iter().enumerate() {
            let (field, at) = if v4 { (6, 20) } else { (42, 48) };
            let word = u16::from_be_bytes([packet[field], packet[field + 1]]);
            let (offset, more) = if v4 { ((word & 0x1fff) * 8, word >> 13 & 1) } else { (word & !7, word & 1) };
            assert_eq!(usize::from(offset), whole.len());
            assert_eq!(more == 1, index + 1 < packets.len());
            assert!(packet.len() <= LEAST_MTU);
            whole.extend_from_slice(&packet[at..]);
        }
        whole
    }

    proptest! {
        #[test]
        fn a_receiver_finds_the_checksum_right(payload in prop::collection::vec(any::<u8>(), 0..70), v4 in any::<bool>()) {
            let (from, to) = if v4 { ("10.96.0.10:53", "10.1.0.5:4") } else { ("[fd96::10]:53", "[fd01::5]:4") };
            let (from, to) = (socket(from), socket(to));
            let head = datagram(from, to, &payload);
            let covered = [
                &pseudo(from.ip(), to.ip(), 17, 8 + payload.len()),
                &head.as_bytes()[if v4 { 20 } else { 40 }..],
                &payload,
            ].concat();
            prop_assert_eq!(slow_checksum(&covered), 0);
        }

        #[test]
        fn both_checksums_agree(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(checksum(&[&bytes]), slow_checksum(&bytes));
        }

        #[test]
        fn fragments_make_the_datagram_again(length in 0_usize..9000, v4 in any::<bool>(), id in any::<u32>()) {
            let (from, to) = if v4 { ("10.96.0.10:53", "10.1.0.5:4") } else { ("[fd96::10]:53", "[fd01::5]:4") };
            let (from, to) = (socket(from), socket(to));
            let payload: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
            let head = datagram(from, to, &payload);
            let whole = [&head.as_bytes()[if v4 { 20 } else { 40 }..], &payload].concat();
            prop_assert_eq!(reassembled(&fragments(from, to, &payload, id), v4), whole);
        }
    }

    #[test]
    fn an_error_quotes_the_clients_datagram() {
        let packet = unreachable(socket("10.1.0.5:40000"), socket("10.96.0.10:53"));
        assert_eq!(packet[9], PROTOCOL_ICMP);
        assert_eq!(packet[20..22], [3, 3]);
        assert_eq!(slow_checksum(&packet[20..]), 0);
        assert_eq!(slow_checksum(&packet[28..48]), 0, "the quoted header");
        assert_eq!(packet[40..48], [10, 1, 0, 5, 10, 96, 0, 10]);
        let packet = unreachable(socket("[fd01::5]:40000"), socket("[fd96::10]:53"));
        assert_eq!((packet[6], packet[40], packet[41]), (PROTOCOL_ICMP6, 1, 4));
    }
}
