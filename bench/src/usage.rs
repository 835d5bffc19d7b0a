//! What a process uses, as the kernel counts it: resident memory and its peak, BPF maps, open descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One mebibyte.
const MIB: f64 = 1024.0 * 1024.0;

/// The memory of one process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Memory {
    /// Resident now (VmRSS), MiB.
    pub(crate) resident: f64,
    /// The most that ever was (VmHWM), MiB.
    pub(crate) peak: f64,
    /// The kernel's memory for the BPF maps that it holds open, MiB.
    pub(crate) maps: f64,
}

impl Memory {
    /// What a process uses now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&status).with_context(|| status.clone())?;
        let field = |name| kibibytes(&status, name).with_context(|| format!("{name} of process {pid}"));
        Ok(Self {
            resident: field("VmRSS:")? / 1024.0,
            peak: field("VmHWM:")? / 1024.0,
            maps: map_bytes(Path::new(&format!("/proc/{pid}/fdinfo")))? as f64 / MIB,
        })
    }

    /// What stands beside a row.
    pub(crate) fn note(&self) -> String {
        format!("VmHWM {:.1} MiB, BPF maps {:.1} MiB", self.peak, self.maps)
    }
}

/// A field of /proc/PID/status that the kernel gives in KiB.
fn kibibytes(status: &str, name: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// The bytes of all BPF maps that a process holds open, each counted once.
fn map_bytes(folder: &Path) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        // A descriptor may be closed between the listing and the look.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        maps.extend(map_of(&info));
    }
    Ok(maps.values().sum())
}

/// A BPF map's id and bytes, if this descriptor is one.
fn map_of(info: &str) -> Option<(u64, u64)> {
    let field = |name| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some((field("map_id:")?, field("memlock:")?))
}

/// How many descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> Result<usize> {
    let folder = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&folder).with_context(|| folder.clone())?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(kibibytes("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n", "VmRSS:"), Some(1024.0));
        assert_eq!(kibibytes("Name:\tx\n", "VmRSS:"), None);
        let map = "pos:\t0\nflags:\t02000002\nmap_type:\t1\nmax_entries:\t10\nmemlock:\t4096\nmap_id:\t7\nfrozen:\t0\n";
        assert_eq!(map_of(map), Some((7, 4096)));
        assert_eq!(map_of("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn this_process_uses_memory_and_descriptors_but_no_maps() {
        let own = Memory::of(std::process::id()).unwrap();
        assert!(own.resident > 1.0 && own.peak >= own.resident && own.maps < 0.001, "{own:?}");
        let before = descriptors(std::process::id()).unwrap();
        let _more: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(descriptors(std::process::id()).unwrap() >= before + 40, "other tests may close some meanwhile");
    }
}
