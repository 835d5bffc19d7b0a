//! Why eBPF can't be used, or a call failed. Each is one line that says what is wrong and how to mend it.

use std::io;
use std::path::PathBuf;

use sheave_abi::ABI_VERSION;
use thiserror::Error;

/// What went wrong.
#[derive(Debug, Error)]
pub enum Error {
    /// The path given as bpffs is something else.
    #[error("{} is not a BPF file system; mount one with `mount -t bpf bpf {}`", path.display(), path.display())]
    NotBpffs {
        /// The path.
        path: PathBuf,
    },
    /// The path given as cgroup is something else.
    #[error("{} is not a directory of a cgroup2 hierarchy; `grep cgroup2 /proc/mounts` shows where one is", path.display())]
    NotCgroup2 {
        /// The path.
        path: PathBuf,
    },
    /// No cgroup2 is mounted.
    #[error("no cgroup2 hierarchy is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup`")]
    NoCgroup2,
    /// The kernel has no bpf().
    #[error("this kernel has no BPF (CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF)")]
    NoBpf,
    /// bpf() is not allowed.
    #[error("BPF is not permitted; run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    NotPermitted,
    /// Pins of another version are there.
    #[error(
        "{} holds maps of ABI version {found}, this is version {ABI_VERSION}; run `sheave-proxy clean` first (connections \
         are not translated until the proxy is up again) or go back to the version that made them",
        path.display()
    )]
    OtherVersion {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// A pinned map isn't laid out as this version lays it out.
    #[error("pinned map {} has keys of {key} and rows of {row} bytes, not ours; run `sheave-proxy clean`", path.display())]
    ForeignMap {
        /// Its pin.
        path: PathBuf,
        /// Bytes of a key.
        key: u32,
        /// Bytes of a row.
        row: u32,
    },
    /// The object could not be loaded: maps not made, or a program rejected.
    #[error("loading {what} failed: {reason}")]
    Load {
        /// The map or program.
        what: String,
        /// What the kernel said, on one line.
        reason: String,
    },
    /// A program could not be attached.
    #[error("attaching {program} to {} failed: {source}", cgroup.display())]
    Attach {
        /// Its name.
        program: &'static str,
        /// Where to.
        cgroup: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map could not be read.
    #[error("reading map {map} failed: {reason}")]
    Read {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// Something about a path failed.
    #[error("{action} {}: {source}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether pins are in the way that another version of this program has made.
    pub fn is_of_others_pins(&self) -> bool {
        matches!(self, Self::OtherVersion { .. } | Self::ForeignMap { .. })
    }

    /// Whether it may go by itself: the kernel had no memory for a moment, say. What the machine lacks doesn't come by waiting.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::Attach { .. } | Self::Read { .. } | Self::Path { .. })
    }

    pub(crate) fn path(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Path { action, path, source }
    }

    /// From an error of aya's, which may carry a verifier's log of many lines.
    pub(crate) fn load(what: &str, error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            cause = error.source();
        }
        // The first line says what failed, the verifier's last ones why, before its statistics.
        let statistics = ["processed ", "stack depth ", "verification time "];
        let said = |line: &&str| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start));
        let lines: Vec<_> = reason.lines().map(str::trim).filter(said).collect();
        let reason = match lines.as_slice() {
            [first, .., a, b] if lines.len() > 6 => format!("{first} .. {a}; {b}"),
            all => all.join("; "),
        };
        Self::Load { what: what.to_owned(), reason }
    }
}
