//! The chains and rules of our table: which packets the listeners take, which are refused, and which are left alone.
//!
//! The rules never change while the proxy runs; what they look up is in sets (`sets`). Their order is DESIGN section 5's.
//! Two bits are used, in packet marks and in connection marks alike, and no other bit is touched:
//! - *take* (packet): deliver to this node's own sockets, by the routing rule in `rules`. On a connection it says that the
//!   node itself opened it towards a frontend, so that it stays with the listener when the frontend goes away.
//! - *own* (packet): sent by one of the proxy's sockets. On a connection: its replies are for one of the proxy's sockets,
//!   even where a process of this very node sends them to what looks like a pod's address.
//!
//! The hooks run just after destination translation, so a flow that another program translates (kube-proxy at takeover, a
//! hostPort) is seen as such from its first packet on, and left alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use sheave_model::Protocol;

use super::expr::{Ct, Expr, Header, Meta, Verdict};

/// `NF_IP_PRI_NAT_DST` + 1.
pub(crate) const PRIORITY: i32 = -99;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 0x20;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`: packets went both ways.
const ESTABLISHED: u32 = 0x2;
/// FIN, SYN, RST and ACK of TCP's flags; a packet with SYN alone opens a connection.
const HANDSHAKE: u8 = 0x17;
const SYN: u8 = 0x02;

/// Packets that start a connection or belong to a refused address get their answer here.
const REFUSE: &str = "refuse";
/// Packets to a frontend that has endpoints.
const SERVE: &str = "serve";
/// The node's own packets that a listener has to see.
const DIVERT: &str = "divert";

/// What the rules depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The bit of packets for our listeners.
    pub(crate) take: u32,
    /// The bit of our own sockets' packets.
    pub(crate) own: u32,
}

/// A chain with its rules.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: &'static str,
    /// Type and `NF_INET_*` number of a base chain.
    pub(crate) hook: Option<(&'static str, u32)>,
    /// In order.
    pub(crate) rules: Vec<Vec<Expr>>,
}

/// All chains, those that others go to first.
pub(crate) fn chains(marks: Marks, port: u16) -> [Chain; 5] {
    const PRE_ROUTING: u32 = 0;
    const LOCAL_OUT: u32 = 3;
    [
        Chain { name: SERVE, hook: None, rules: serve(marks, port) },
        Chain { name: REFUSE, hook: None, rules: refuse() },
        Chain { name: DIVERT, hook: None, rules: divert(marks) },
        Chain { name: "prerouting", hook: Some(("filter", PRE_ROUTING)), rules: prerouting(marks) },
        Chain { name: "output", hook: Some(("route", LOCAL_OUT)), rules: output(marks) },
    ]
}

fn prerouting(marks: Marks) -> Vec<Vec<Expr>> {
    let mut rules = vec![
        // Ours on its way to a backend on this node, or to a client on it.
        rule([has_mark(marks.own), accept()]),
        // A reply in a connection that the proxy didn't open, where one of its sockets may have the same addresses: a pod
        // can use one port towards a Service and, at the same time, straight to the Service's backend.
        rule([l4(libc::IPPROTO_TCP), direction(1), no_ct_mark(marks.own), accept()]),
        // Replies to our transparent sockets and what established clients send. A SYN is not among them: where our socket
        // is in TIME-WAIT only tproxy hands a reused port to the listener.
        rule([tcp_not_syn(), transparent(true), mark(marks.take), accept()]),
    ];
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6] {
        rules.push(rule([l4(protocol), transparent(true), mark(marks.take), accept()]));
    }
    for v4 in [true, false] {
        // A reply that a session sent after conntrack had forgotten its flow began a new one, in which the client's
        // datagrams are the replies.
        let answer = [l4(libc::IPPROTO_UDP), direction(1), has_ct_mark(marks.own)].concat();
        rules.push(rule([answer.clone(), frontend(v4, set(v4, "frontends4", "frontends6")), goto(SERVE)]));
        rules.push(rule([answer, frontend(v4, set(v4, "refused4", "refused6")), goto(SERVE)]));
    }
    rules.extend(left_alone());
    for v4 in [true, false] {
        rules.push(rule([frontend(v4, set(v4, "frontends4", "frontends6")), goto(SERVE)]));
        // The node's own datagrams, sent here by the output chain: the listener answers them with "port unreachable".
        let own = [l4(libc::IPPROTO_UDP), has_ct_mark(marks.take)].concat();
        rules.push(rule([own.clone(), frontend(v4, set(v4, "refused4", "refused6")), goto(SERVE)]));
        rules.push(rule([own, address(v4, set(v4, "vips4", "vips6")), goto(SERVE)]));
        rules.push(rule([frontend(v4, set(v4, "refused4", "refused6")), goto(REFUSE)]));
        rules.push(rule([address(v4, set(v4, "vips4", "vips6")), goto(REFUSE)]));
        rules.push(rule([address(v4, set(v4, "cidrs4", "cidrs6")), drop()]));
    }
    rules
}

fn output(marks: Marks) -> Vec<Vec<Expr>> {
    let mut rules = vec![
        // In such a connection of the client's own the proxy must not speak; it tries another port.
        rule([has_mark(marks.own), l4(libc::IPPROTO_TCP), direction(0), established(), no_ct_mark(marks.own), drop()]),
        rule([has_mark(marks.own), direction(0), ct_mark(marks.own), accept()]),
        rule([has_mark(marks.own), accept()]),
        rule([direction(1), has_ct_mark(marks.own), mark(marks.take), accept()]),
    ];
    rules.extend(left_alone());
    rules.push(rule([l4(libc::IPPROTO_TCP), has_ct_mark(marks.take), mark(marks.take), accept()]));
    for v4 in [true, false] {
        rules.push(rule([frontend(v4, set(v4, "frontends4", "frontends6")), goto(DIVERT)]));
        // A datagram that is refused or dropped here would fail its send() with EPERM: it goes round by lo, and there to
        // the listener, since the kernel sends no ICMP error in the name of an address that isn't this node's.
        for (refused, chain) in [(l4(libc::IPPROTO_UDP), DIVERT), (l4(libc::IPPROTO_TCP), REFUSE)] {
            rules.push(rule([refused.clone(), frontend(v4, set(v4, "refused4", "refused6")), goto(chain)]));
            rules.push(rule([refused, address(v4, set(v4, "vips4", "vips6")), goto(chain)]));
        }
        rules.push(rule([address(v4, set(v4, "vips4", "vips6")), goto(REFUSE)]));
        rules.push(rule([address(v4, set(v4, "cidrs4", "cidrs6")), goto(DIVERT)]));
    }
    rules
}

/// Replies, and flows that somebody else translates.
fn left_alone() -> [Vec<Expr>; 2] {
    let translated = vec![Expr::Ct(Ct::Status, 0), bits(0, DST_NAT, 0), not_zero(0)];
    [rule([direction(1), accept()]), rule([translated, accept()])]
}

fn serve(marks: Marks, port: u16) -> Vec<Vec<Expr>> {
    let tproxy = |protocol: Protocol, v4: bool| {
        let to = if v4 { Ipv4Addr::LOCALHOST.octets().to_vec() } else { Ipv6Addr::LOCALHOST.octets().to_vec() };
        let steps = vec![
            Expr::Load(0, to),
            Expr::Load(4, port.to_be_bytes().to_vec()),
            Expr::Tproxy { v4, address: 0, port: 4 },
        ];
        rule([family(v4), l4(protocol.number().into()), steps, mark(marks.take), accept()])
    };
    vec![
        // A connection that a program of this node had on an address and port before they became a frontend's; a listener
        // there on any address had none.
        rule([tcp_not_syn(), transparent(false), wildcard(false), accept()]),
        tproxy(Protocol::Tcp, true),
        tproxy(Protocol::Udp, true),
        tproxy(Protocol::Tcp, false),
        tproxy(Protocol::Udp, false),
        // No listener: nothing is refused while a proxy restarts, the client sends its SYN again.
        rule([drop()]),
    ]
}

/// A rule, and the chain it goes before all others of, that keeps new connections from listeners that are about to close:
/// what they would still accept would be reset.
pub(crate) fn hold_back() -> (&'static str, Vec<Expr>) {
    (SERVE, rule([tcp_syn(true), drop()]))
}

fn refuse() -> Vec<Vec<Expr>> {
    vec![
        rule([tcp_not_syn(), transparent(false), wildcard(false), accept()]),
        rule([l4(libc::IPPROTO_TCP), vec![Expr::Reset]]),
        rule([vec![Expr::Unreachable]]),
    ]
}

fn divert(marks: Marks) -> Vec<Vec<Expr>> {
    vec![rule([ct_mark(marks.take), mark(marks.take), accept()])]
}

fn rule<const N: usize>(steps: [Vec<Expr>; N]) -> Vec<Expr> {
    steps.into_iter().flatten().collect()
}

const fn set(v4: bool, four: &'static str, six: &'static str) -> &'static str {
    if v4 { four } else { six }
}

fn accept() -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Accept)]
}

fn drop() -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Drop)]
}

fn goto(chain: &'static str) -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Goto(chain))]
}

/// Marks and the like are numbers in the machine's order.
fn bits(register: u32, keep: u32, flip: u32) -> Expr {
    Expr::Bits { register, mask: keep.to_ne_bytes().to_vec(), flip: flip.to_ne_bytes().to_vec() }
}

fn not_zero(register: u32) -> Expr {
    Expr::Compare { register, equal: false, value: vec![0; 4] }
}

fn zero(register: u32) -> Expr {
    Expr::Compare { register, equal: true, value: vec![0; 4] }
}

fn is(register: u32, value: u8) -> Expr {
    Expr::Compare { register, equal: true, value: vec![value] }
}

fn has_mark(bit: u32) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Mark, 0), bits(0, bit, 0), not_zero(0)]
}

fn mark(bit: u32) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Mark, 0), bits(0, !bit, bit), Expr::SetMark(0)]
}

fn has_ct_mark(bit: u32) -> Vec<Expr> {
    vec![Expr::Ct(Ct::Mark, 0), bits(0, bit, 0), not_zero(0)]
}

fn no_ct_mark(bit: u32) -> Vec<Expr> {
    vec![Expr::Ct(Ct::Mark, 0), bits(0, bit, 0), zero(0)]
}

fn established() -> Vec<Expr> {
    vec![Expr::Ct(Ct::State, 0), bits(0, ESTABLISHED, 0), not_zero(0)]
}

fn ct_mark(bit: u32) -> Vec<Expr> {
    vec![Expr::Ct(Ct::Mark, 0), bits(0, !bit, bit), Expr::SetCtMark(0)]
}

fn direction(way: u8) -> Vec<Expr> {
    vec![Expr::Ct(Ct::Direction, 0), is(0, way)]
}

fn l4(protocol: i32) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Protocol, 0), is(0, protocol as u8)]
}

fn family(v4: bool) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Family, 0), is(0, if v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 } as u8)]
}

fn transparent(yes: bool) -> Vec<Expr> {
    vec![Expr::SocketTransparent(0), is(0, yes.into())]
}

/// Whether the packet's socket is bound to every address.
fn wildcard(yes: bool) -> Vec<Expr> {
    vec![Expr::SocketWildcard(0), is(0, yes.into())]
}

fn tcp_not_syn() -> Vec<Expr> {
    tcp_syn(false)
}

/// Whether a TCP packet opens a connection.
fn tcp_syn(yes: bool) -> Vec<Expr> {
    const FLAGS_AT: u32 = 13;
    let mut steps = l4(libc::IPPROTO_TCP);
    steps.push(Expr::Payload(Header::Transport, FLAGS_AT, 1, 0));
    steps.push(Expr::Bits { register: 0, mask: vec![HANDSHAKE], flip: vec![0] });
    steps.push(Expr::Compare { register: 0, equal: yes, value: vec![SYN] });
    steps
}

/// Where the destination address stands in the IP header: offset and length.
const fn destination(v4: bool) -> (u32, u32) {
    if v4 { (16, 4) } else { (24, 16) }
}

fn address(v4: bool, set: &'static str) -> Vec<Expr> {
    let (offset, length) = destination(v4);
    let mut steps = family(v4);
    steps.push(Expr::Payload(Header::Network, offset, length, 0));
    steps.push(Expr::Lookup(set, 0));
    steps
}

/// The destination's address, protocol and port, each padded to words, as the sets have them.
fn frontend(v4: bool, set: &'static str) -> Vec<Expr> {
    const PORT_AT: u32 = 2;
    let (offset, length) = destination(v4);
    let word = length / 4;
    let mut steps = family(v4);
    steps.push(Expr::Payload(Header::Network, offset, length, 0));
    steps.push(Expr::Meta(Meta::Protocol, word));
    steps.push(Expr::Payload(Header::Transport, PORT_AT, 2, word + 1));
    steps.push(Expr::Lookup(set, 0));
    steps
}
