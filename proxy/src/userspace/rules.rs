//! The routing rule and routes that deliver packets with our mark to this node's own sockets, by rtnetlink.
//!
//! `ip rule fwmark M/M lookup T` and `ip route local default dev lo table T`, in both families.

use std::io;

use super::netlink::{ACK, Attributes, CREATE, EXCL, Messages, Netlink, NetlinkError, REQUEST};
use super::sys;

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;

/// The rule's place. It comes before the rules that pods' addresses are routed by, which container network plug-ins put
/// at 512 and up (Amazon's VPC CNI), because replies to transparent sockets are addressed to pods.
const PRIORITY: u32 = 90;

/// How many rules of ours `remove` takes away at most, per family: more than one can be there only by hand.
const MOST_RULES: usize = 64;

/// Adds what is missing.
///
/// # Errors
/// What the kernel refused. IPv6 is left out where the kernel doesn't have it.
pub(crate) fn install(mark: u32, table: u32) -> Result<(), NetlinkError> {
    let netlink = Netlink::open(libc::NETLINK_ROUTE)?;
    let lo = sys::interface_index(c"lo").ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let route = one(&netlink, NEW_ROUTE, CREATE | EXCL, &route_header(family), |a| route_body(a, table, lo));
        let rule = one(&netlink, NEW_RULE, CREATE | EXCL, &rule_header(family), |a| rule_body(a, mark, table));
        for result in [route, rule] {
            match result {
                Err(e) if e.code() == libc::EEXIST => {}
                Err(e) if absent(family, &e) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Removes what `install` adds.
///
/// # Errors
/// What the kernel refused; that there is nothing is no error.
pub(crate) fn remove(mark: u32, table: u32) -> Result<(), NetlinkError> {
    let netlink = Netlink::open(libc::NETLINK_ROUTE)?;
    let lo = sys::interface_index(c"lo").ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for _ in 0..MOST_RULES {
            match one(&netlink, DELETE_RULE, 0, &rule_header(family), |a| rule_body(a, mark, table)) {
                Ok(()) => {}
                Err(e) if e.code() == libc::ENOENT || absent(family, &e) => break,
                Err(e) => return Err(e),
            }
        }
        match one(&netlink, DELETE_ROUTE, 0, &route_header(family), |a| route_body(a, table, lo)) {
            Err(e) if e.code() == libc::ESRCH || e.code() == libc::ENOENT || absent(family, &e) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Whether an error says that the kernel lacks IPv6, or (EACCES) that it is switched off by net.ipv6.conf.*.disable_ipv6.
fn absent(family: i32, error: &NetlinkError) -> bool {
    const WITHOUT: [i32; 4] = [libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::ENETUNREACH, libc::EACCES];
    family == libc::AF_INET6 && WITHOUT.contains(&error.code())
}

fn one(
    netlink: &Netlink,
    kind: u16,
    flags: u16,
    header: &[u8],
    body: impl FnOnce(&mut Attributes<'_>),
) -> Result<(), NetlinkError> {
    let mut messages = Messages::new(1);
    let last = messages.push(kind, REQUEST | ACK | flags, header, body);
    netlink.transact(&messages, last)
}

/// `struct fib_rule_hdr`: family, lengths, tos, table, two reserved bytes, action, flags.
fn rule_header(family: i32) -> [u8; 12] {
    const LOOKUP: u8 = 1;
    [family as u8, 0, 0, 0, 0, 0, 0, LOOKUP, 0, 0, 0, 0]
}

fn rule_body(a: &mut Attributes<'_>, mark: u32, table: u32) {
    a.ne32(6, PRIORITY);
    a.ne32(10, mark);
    a.ne32(16, mark);
    a.ne32(15, table);
}

/// `struct rtmsg`: family, lengths, tos, table, protocol, scope, type, flags.
fn route_header(family: i32) -> [u8; 12] {
    const STATIC: u8 = 4;
    const LOCAL: u8 = 2;
    let scope = if family == libc::AF_INET { libc::RT_SCOPE_HOST } else { libc::RT_SCOPE_UNIVERSE };
    [family as u8, 0, 0, 0, 0, STATIC, scope, LOCAL, 0, 0, 0, 0]
}

fn route_body(a: &mut Attributes<'_>, table: u32, interface: u32) {
    a.ne32(15, table);
    a.ne32(4, interface);
}
