//! Ports that a proxy listens on, and who has them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use crate::finding::Finding;

/// What listens where. Health is tried again until it is free, as kube-proxy has it too.
const PORTS: [(u16, Ipv4Addr, &str); 3] = [
    (15020, Ipv4Addr::UNSPECIFIED, "metrics and readiness"),
    (10256, Ipv4Addr::UNSPECIFIED, "health"),
    (15001, Ipv4Addr::LOCALHOST, "the transparent listeners"),
];

/// Our own program's name, as the kernel shortens it.
const OWN: &str = "sheave-proxy";

/// One finding for each port.
pub(super) fn look() -> Vec<Finding> {
    let one = |(port, address, what): (u16, Ipv4Addr, &str)| match TcpListener::bind(SocketAddr::new(
        IpAddr::V4(address),
        port,
    )) {
        Ok(_) => Finding::ok(format!("port {port}"), format!("free, for {what}")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => judge(port, what, &holders(port)),
        Err(error) => Finding::error(format!("port {port}"), format!("{what}: {error}"), "run this as root"),
    };
    PORTS.into_iter().map(one).collect()
}

fn judge(port: u16, what: &str, holders: &BTreeSet<String>) -> Finding {
    let about = format!("port {port}");
    let names = holders.iter().cloned().collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { "a program that can't be seen from here".to_owned() } else { names };
    if holders.contains(OWN) {
        return Finding::ok(about, format!("{names} has it, for {what}"));
    }
    if holders.contains("kube-proxy") {
        let message = format!("kube-proxy has it, for {what}");
        return Finding::warning(about, message, "the proxy takes it once kube-proxy is gone");
    }
    Finding::error(
        about,
        format!("taken by {names}, and needed for {what}"),
        "give that program another port, or Sheave's by --admin and --health",
    )
}

/// Names of the programs that listen on a TCP port.
fn holders(port: u16) -> BTreeSet<String> {
    let sockets: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .flat_map(|path| listening(&fs::read_to_string(path).unwrap_or_default(), port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes =
        processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()));
    let holds = |process: &fs::DirEntry| {
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| sockets.contains(&*to.to_string_lossy()))
    };
    let name = |process: fs::DirEntry| fs::read_to_string(process.path().join("comm")).ok();
    processes.filter(holds).filter_map(name).map(|name| name.trim().to_owned()).collect()
}

/// The inodes of sockets that listen on a port, in a table of /proc/net.
fn listening(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, its) = fields.get(1)?.rsplit_once(':')?;
        let same = u16::from_str_radix(its, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        same.then(|| fields.get(9).map(|&inode| inode.to_owned())).flatten()
    };
    table.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn a_listener_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 00000000:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x\n\
                     1: 0100007F:2810 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 x\n";
        assert_eq!(listening(table, 10256), ["4711"]);
        assert!(listening(table, 15020).is_empty());
    }

    #[test]
    fn who_has_a_port_decides_how_bad_that_is() {
        let by = |names: &[&str]| judge(10256, "health", &names.iter().map(|&name| name.to_owned()).collect()).level;
        assert_eq!(by(&["sheave-proxy"]), Level::Ok);
        assert_eq!(by(&["kube-proxy"]), Level::Warning);
        assert_eq!((by(&["nginx"]), by(&[])), (Level::Error, Level::Error));
    }

    #[test]
    fn this_programs_own_listener_is_seen() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(holders(socket.local_addr().unwrap().port()).len(), 1);
    }
}
