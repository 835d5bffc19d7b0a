//! Whose rules are in the kernel: kube-proxy's, another network's, our own. Read by netlink, as nothing else need be installed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::finding::Finding;

/// linux/netlink.h and linux/netfilter/nf_tables.h.
const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, and `NFTA_CHAIN_NAME`.
const TABLE: u16 = 1;
const CHAIN: u16 = 3;
/// Bytes of `struct nlmsghdr` and of `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// Rules in the way, by what names the kernel has.
pub(super) fn look() -> Vec<Finding> {
    let names = tables().and_then(|tables| Ok((tables, chains()?)));
    let mut findings = match names {
        Ok((tables, chains)) => judge(&tables, &chains),
        Err(error) => vec![Finding::warning("rules", format!("nftables can't be read: {error}"), "run this as root")],
    };
    // Two lines of headings, then one for each virtual server.
    if fs::read_to_string("/proc/net/ip_vs").is_ok_and(|text| text.lines().count() > 3) {
        findings.push(kube_proxy("IPVS has virtual servers"));
    }
    let legacy = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if legacy.lines().any(|table| table == "nat") {
        let message = "the older iptables has a nat table, which can't be read from here";
        findings.push(Finding::warning("rules", message, "look for KUBE-SERVICES in `iptables-legacy-save -t nat`"));
    }
    findings
}

fn kube_proxy(message: &str) -> Finding {
    let remedy = "both can run side by side; `kube-proxy --cleanup` removes what a kube-proxy that is gone has left";
    Finding::warning("rules", format!("{message}, of a kube-proxy"), remedy)
}

fn judge(tables: &BTreeSet<String>, chains: &BTreeSet<(String, String)>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if tables.contains("kube-proxy") {
        findings.push(kube_proxy("nftables has a table kube-proxy"));
    }
    let chain = |start: &str| chains.iter().find(|(_, chain)| chain.starts_with(start));
    if let Some((table, chain)) = chain("KUBE-SERVICES") {
        findings.push(kube_proxy(&format!("table {table} has a chain {chain}")));
    }
    if let Some((table, chain)) = chain("CILIUM_") {
        let remedy = "with kubeProxyReplacement it serves Services itself: turn that off, or leave Services to it";
        findings.push(Finding::warning("rules", format!("table {table} has a chain {chain}, of Cilium"), remedy));
    }
    if findings.is_empty() {
        let own =
            if tables.contains("sheave") { "only Sheave's own serve Services" } else { "none serve Services yet" };
        findings.push(Finding::ok("rules", own));
    }
    findings
}

fn tables() -> io::Result<BTreeSet<String>> {
    Ok(dump(GET_TABLE, &[TABLE])?.into_iter().map(|mut names| names.remove(0)).collect())
}

fn chains() -> io::Result<BTreeSet<(String, String)>> {
    let names = dump(GET_CHAIN, &[TABLE, CHAIN])?;
    Ok(names.into_iter().map(|mut names| (names.remove(0), names.remove(0))).collect())
}

/// The text of these attributes, of every object of a kind and of every family.
fn dump(kind: u16, wanted: &[u16]) -> io::Result<Vec<Vec<String>>> {
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::with_capacity(HEADER + FAMILY);
    request.extend_from_slice(&((HEADER + FAMILY) as u32).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8 + FAMILY]); // number, sender, and every family
    socket.write_all(&request)?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let length = socket.read(&mut buffer)?;
        if take(&buffer[..length], wanted, &mut found)? {
            return Ok(found);
        }
    }
}

/// Reads one datagram of a dump; returns whether it ends with it.
fn take(mut bytes: &[u8], wanted: &[u16], found: &mut Vec<Vec<String>>) -> io::Result<bool> {
    let cut = || io::Error::other("the kernel's answer is cut");
    while bytes.len() >= HEADER {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let message = bytes.get(HEADER..length).ok_or_else(cut)?;
        match u16::from_ne_bytes([bytes[4], bytes[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = message.get(..4).ok_or_else(cut)?;
                let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ => found.extend(texts(message.get(FAMILY..).ok_or_else(cut)?, wanted)),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// These attributes of one object; nothing where one is missing.
fn texts(mut bytes: &[u8], wanted: &[u16]) -> Option<Vec<String>> {
    let mut all = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let (kind, value) = (u16::from_ne_bytes([bytes[2], bytes[3]]), bytes.get(4..length)?);
        if wanted.contains(&kind) {
            let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
            all.push((kind, String::from_utf8_lossy(text).into_owned()));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let of = |kind: &u16| all.iter().find(|(its, _)| its == kind).map(|(_, text)| text.clone());
    wanted.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    fn message(kind: u16, attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut body = vec![0; FAMILY];
        for (kind, text) in attributes {
            body.extend(((4 + text.len() + 1) as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(text.bytes().chain([0]));
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn names_are_read_until_the_end_of_a_dump() {
        let mut found = Vec::new();
        let first =
            [message(0xa03, &[(TABLE, "nat"), (2, "x"), (CHAIN, "KUBE-SERVICES")]), message(0xa03, &[(TABLE, "nat")])];
        assert!(!take(&first.concat(), &[TABLE, CHAIN], &mut found).unwrap());
        assert!(take(&message(NLMSG_DONE, &[]), &[TABLE, CHAIN], &mut found).unwrap());
        assert_eq!(found, [["nat", "KUBE-SERVICES"]], "an object without a name says nothing");
        let mut error = message(NLMSG_ERROR, &[]);
        error[HEADER..HEADER + 4].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(take(&error, &[TABLE], &mut found).unwrap_err().raw_os_error(), Some(1));
        assert!(take(&first[0][..30], &[TABLE], &mut found).is_err());
    }

    #[test]
    fn others_rules_are_known_by_their_names() {
        let tables = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let chains = |name: &str| BTreeSet::from([("nat".to_owned(), name.to_owned())]);
        assert_eq!(judge(&tables(&["sheave"]), &chains("prerouting"))[0].level, Level::Ok);
        for (tables, chains, word) in [
            (tables(&["kube-proxy", "sheave"]), chains("x"), "table kube-proxy"),
            (tables(&["nat"]), chains("KUBE-SERVICES"), "chain KUBE-SERVICES"),
            (tables(&["nat"]), chains("CILIUM_POST_nat"), "Cilium"),
        ] {
            let found = judge(&tables, &chains);
            assert!(found[0].level == Level::Warning && found[0].message.contains(word), "{found:?}");
        }
    }
}
