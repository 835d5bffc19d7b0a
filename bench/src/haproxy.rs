//! Debian's haproxy in TCP mode, for comparison: one thread, the same transparent listener behind the product's own rules,
//! the client's own address upstream, and splicing in the kernel in both directions. Its other settings are its defaults.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use sheave_harness::process::{Place, Process};
use sheave_harness::wait::until;
use sheave_harness::world::Node;

/// The configuration: the client's own address and port upstream, as the other arms have it.
fn config(listen: SocketAddr, backend: SocketAddr) -> String {
    format!(
        "global\n    nbthread 1\n    maxconn 4096\n\
         defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n    \
         option splice-request\n    option splice-response\n\
         listen bench\n    bind {listen} transparent\n    source 0.0.0.0 usesrc client\n    server far {backend}\n"
    )
}

/// Gives the first packet of each of its connections to `backend` the mark that a proxy behind the product's rules has on
/// its sockets, and that haproxy can't set. The other packets pass as they would without.
pub(crate) fn lend_mark(node: &Node, backend: SocketAddr, mark: u32) -> Result<()> {
    let (ip, port, mark) = (backend.ip().to_string(), backend.port().to_string(), format!("{mark:#x}"));
    let opens = "tcp flags & (fin | syn | rst | ack) == syn";
    let rule = format!("ip daddr {ip} tcp dport {port} {opens} meta mark set meta mark or {mark}");
    for command in [
        "add table inet haproxy",
        "add chain inet haproxy output { type filter hook output priority -110; }",
        &format!("add rule inet haproxy output {rule}"),
    ] {
        node.netns.output("nft", &[command])?;
    }
    Ok(())
}

/// Starts haproxy at a place and waits until it listens. It ends when dropped.
pub(crate) fn start(place: &Place, folder: &Path, listen: SocketAddr, backend: SocketAddr) -> Result<Process> {
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, config(listen, backend)).with_context(|| format!("{}", file.display()))?;
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(&file);
    let mut process = Process::start("haproxy", command, place, folder).context("haproxy (Debian: haproxy)")?;
    let netns = place.netns.clone();
    until("haproxy listens", Duration::from_secs(5), || {
        process.still_runs()?;
        let sockets = netns.output("ss", &["-Hltn"])?;
        sockets.contains(&listen.to_string()).then_some(()).with_context(|| format!("sockets are {sockets}"))
    })?;
    Ok(process)
}
