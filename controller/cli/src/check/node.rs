//! This machine as a node.

use std::fs;

use super::{kernel, mounts, nftables, ports};
use crate::args::CheckArgs;
use crate::finding::Finding;

/// What a proxy may do, by bit of the kernel's sets, and what for.
const CAPABILITIES: [(u32, &str, &str); 5] = [
    (39, "BPF", "maps and programs"),
    (38, "PERFMON", "programs that read pointers to one of several maps"),
    (12, "NET_ADMIN", "attaching programs, nftables, routing rules, transparent sockets"),
    (13, "NET_RAW", "replies with a Service's address as their source"),
    (10, "NET_BIND_SERVICE", "ports below 1024"),
];

/// Everything.
pub(super) fn look(wanted: &CheckArgs) -> Vec<Finding> {
    let mut findings = vec![capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default())];
    findings.extend(kernel::look());
    findings.extend(mounts::look(&wanted.cgroup, &wanted.bpffs));
    findings.extend(ports::look());
    findings.extend(nftables::look());
    findings.push(forwarding());
    findings.push(proxy(wanted));
    findings
}

fn capabilities(status: &str) -> Finding {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()) else {
        return Finding::warning("capabilities", "they can't be read from /proc/self/status", "mount /proc");
    };
    let missing = CAPABILITIES.iter().filter(|(bit, ..)| set & (1 << bit) == 0);
    let missing: Vec<_> = missing.map(|(_, name, use_)| format!("{name} ({use_})")).collect();
    if missing.is_empty() {
        return Finding::ok("capabilities", "all five that a proxy needs");
    }
    Finding::error(
        "capabilities",
        format!("missing: {}", missing.join(", ")),
        "run this as root; in a pod, as manifests/base has it",
    )
}

fn forwarding() -> Finding {
    match fs::read_to_string("/proc/sys/net/ipv4/ip_forward").as_deref().map(str::trim) {
        Ok("0") => Finding::warning(
            "forwarding",
            "net.ipv4.ip_forward is 0, so packets to pods from outside are dropped",
            "the pod network's agent sets it; or sysctl -w net.ipv4.ip_forward=1",
        ),
        Ok(_) => Finding::ok("forwarding", "net.ipv4.ip_forward is set"),
        Err(error) => Finding::warning("forwarding", format!("net.ipv4.ip_forward: {error}"), "mount /proc"),
    }
}

fn proxy(wanted: &CheckArgs) -> Finding {
    let socket = wanted.state_dir.join("admin.sock");
    match std::os::unix::net::UnixStream::connect(&socket) {
        Ok(_) => Finding::ok("proxy", format!("runs; `sheave --socket {} status` asks it", socket.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::ok("proxy", "none runs here yet"),
        Err(error) => Finding::warning(
            "proxy",
            format!("{}: {error}", socket.display()),
            "the last one ended or is starting; its pod's log says more",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn capabilities_are_named_with_what_they_are_for() {
        assert_eq!(capabilities("CapEff:\t000001ffffffffff\n").level, Level::Ok);
        let few = capabilities("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000001400\n");
        assert_eq!(few.level, Level::Error);
        assert!(few.message.contains("BPF (maps") && !few.message.contains("NET_ADMIN"), "{few:?}");
        assert_eq!(capabilities("").level, Level::Warning);
    }
}
