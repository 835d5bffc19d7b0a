//! The kernel: its version, what nftables can do, and whether it lets BPF in.

use std::fs;
use std::path::Path;

use super::{OLDEST_KERNEL, version};
use crate::finding::Finding;
use crate::sys;

/// What the listeners' table is made of (CONFIG_NF_TABLES and so on).
const MODULES: [&str; 5] = ["nf_tables", "nft_tproxy", "nft_socket", "nft_ct", "nft_reject_inet"];

/// Version, modules, lockdown.
pub(super) fn look() -> Vec<Finding> {
    let release = sys::release().unwrap_or_default();
    vec![
        judge(&release),
        modules(&release),
        lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()),
    ]
}

/// Whether a release is new enough.
pub(super) fn judge(release: &str) -> Finding {
    let (major, minor) = OLDEST_KERNEL;
    let wanted = format!("Linux {major}.{minor} or newer is needed");
    match version(release) {
        Some(found) if found >= OLDEST_KERNEL => Finding::ok("kernel", format!("Linux {release}")),
        Some(_) => Finding::error("kernel", format!("Linux {release} is too old"), wanted),
        None => Finding::warning("kernel", format!("its version {release:?} can't be read"), wanted),
    }
}

/// Modules are loaded when they are needed, so that it is enough for them to be there.
fn modules(release: &str) -> Finding {
    let folder = Path::new("/lib/modules").join(release);
    let lists = ["modules.builtin", "modules.dep"].map(|name| fs::read_to_string(folder.join(name)).ok());
    let listed = |module: &str| {
        let file = format!("/{module}.ko");
        lists.iter().flatten().any(|list| list.contains(&file))
    };
    let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
    let missing: Vec<_> = MODULES.into_iter().filter(|module| !loaded(module) && !listed(module)).collect();
    if missing.is_empty() {
        return Finding::ok("nftables", "its modules are there");
    }
    let message = format!("neither loaded nor below {}: {}", folder.display(), missing.join(", "));
    let remedy =
        "a kernel may have them built in, and a proxy says when it starts whether they are missing; else install them";
    if lists.iter().all(Option::is_none) {
        // From within a pod there are no modules to be seen.
        return Finding::ok("nftables", format!("not known: {message}"));
    }
    Finding::warning("nftables", message, remedy)
}

fn lockdown(state: &str) -> Finding {
    if state.contains("[confidentiality]") {
        return Finding::warning(
            "lockdown",
            "the kernel is locked down for confidentiality and refuses BPF, so that userspace forwards",
            "boot with lockdown=integrity, or without",
        );
    }
    Finding::ok("lockdown", "BPF is not locked out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn a_kernel_is_too_old_or_not() {
        assert_eq!(judge("5.14.0-70.el9").level, Level::Ok);
        assert_eq!(judge("5.4.0-150-generic").level, Level::Error);
        assert_eq!(judge("").level, Level::Warning);
    }

    #[test]
    fn only_confidentiality_locks_bpf_out() {
        assert_eq!(lockdown("none integrity [confidentiality]\n").level, Level::Warning);
        assert_eq!(lockdown("none [integrity] confidentiality\n").level, Level::Ok);
        assert_eq!(lockdown("").level, Level::Ok);
    }
}
