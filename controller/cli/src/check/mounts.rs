//! Whether the file systems are there that eBPF needs.

use std::fs;
use std::path::Path;

use crate::finding::Finding;

/// cgroup2 and the BPF file system.
pub(super) fn look(cgroup: &Path, bpffs: &Path) -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let unified = kind(&mounts, &cgroup.join("unified")) == Some("cgroup2");
    let remedy = match unified {
        true => format!("use {0}/unified: it is cgroup2, and {0} is version 1", cgroup.display()),
        false => "boot with systemd.unified_cgroup_hierarchy=1, or mount it: mount -t cgroup2 none DIR".to_owned(),
    };
    vec![
        one("cgroup2", &mounts, cgroup, remedy),
        one("bpf", &mounts, bpffs, format!("mount -t bpf bpf {}", bpffs.display())),
    ]
}

fn one(wanted: &str, mounts: &str, path: &Path, remedy: String) -> Finding {
    let (about, shown) = (format!("mount {wanted}"), path.display());
    match kind(mounts, path) {
        _ if !path.exists() => Finding::warning(about, format!("{shown} is not there, so userspace forwards"), remedy),
        Some(found) if found == wanted => Finding::ok(about, shown.to_string()),
        found => {
            let found = found.unwrap_or("unknown");
            Finding::warning(
                about,
                format!("{shown} is on a file system of type {found}, so userspace forwards"),
                remedy,
            )
        }
    }
}

/// The type of the file system that a path is on: of the longest mount point that it begins with, the last of those.
fn kind<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let on = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = Path::new(before.split(' ').nth(4)?);
        path.starts_with(point).then(|| (point.components().count(), after.split(' ').next()))
    });
    on.max_by_key(|(depth, _)| *depth).and_then(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "21 1 0:20 / / rw - ext4 /dev/sda rw\n\
                          22 21 0:21 / /sys rw,nosuid shared:2 - sysfs sysfs rw\n\
                          23 22 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                          24 23 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw\n\
                          25 22 0:24 / /sys/fs/bpf rw - tmpfs none rw\n\
                          26 22 0:25 / /sys/fs/bpf rw - bpf bpf rw\n";

    #[test]
    fn the_file_system_is_that_of_the_innermost_and_last_mount() {
        let of = |path: &str| kind(MOUNTS, Path::new(path));
        assert_eq!(of("/sys/fs/cgroup"), Some("tmpfs"));
        assert_eq!(of("/sys/fs/cgroup/unified/kubepods"), Some("cgroup2"));
        assert_eq!(of("/sys/fs/bpf"), Some("bpf"));
        assert_eq!(of("/sys/fs/bpfx"), Some("sysfs"));
        assert_eq!(kind("", Path::new("/")), None);
    }
}
