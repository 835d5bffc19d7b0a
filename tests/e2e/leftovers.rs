//! What must be gone: entries when all objects are, and everything after `sheave-proxy clean`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use sheave_harness::cluster::{Cluster, DataPath};
use sheave_harness::wait::until;
use sheave_harness::world::Node;
use sheave_harness::{metrics, sys};

use crate::check::SOON;

/// Entries of a node: map fill, nftables set elements and UDP sessions, by what they are.
type Entries = BTreeMap<String, f64>;

/// The entries of every node now.
pub(crate) fn entries(cluster: &Cluster) -> Result<Vec<Entries>> {
    cluster.world.nodes.iter().map(|node| entries_of(node, cluster.options.path)).collect()
}

fn entries_of(node: &Node, path: DataPath) -> Result<Entries> {
    let metrics = metrics::proxy(node)?;
    let mut entries = Entries::new();
    if path == DataPath::Ebpf {
        pinned(&node.bpffs, &mut entries)?;
        ensure!(!entries.is_empty(), "no map is pinned on {}", node.name);
    }
    entries.insert("UDP sessions".to_owned(), metrics.sum("sheave_udp_sessions", &[]));
    entries.insert("nftables set elements".to_owned(), set_elements(node)? as f64);
    Ok(entries)
}

/// Rows of every hash table that is pinned below a folder, read from the kernel.
fn pinned(folder: &Path, entries: &mut Entries) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            pinned(&path, entries)?;
        } else if let Ok(Some(rows)) = sys::pinned_rows(&path) {
            entries.insert(format!("rows of map {}", entry.file_name().to_string_lossy()), rows as f64);
        }
    }
    Ok(())
}

/// Elements of all sets of the product's table, counted by `nft` itself.
fn set_elements(node: &Node) -> Result<usize> {
    let text = node.netns.output("nft", &["-j", "list", "table", "inet", "sheave"])?;
    let ruleset: serde_json::Value = serde_json::from_str(&text)?;
    let items = ruleset["nftables"].as_array().cloned().unwrap_or_default();
    let count = |item: &serde_json::Value| {
        let of = |kind: &str| item[kind]["elem"].as_array().map_or(0, Vec::len);
        of("set") + of("map")
    };
    Ok(items.iter().map(count).sum())
}

/// Waits until every node has the entries it had before the first case.
pub(crate) fn gone(cluster: &Cluster, before: &[Entries]) -> Result<()> {
    until("entries as before the first case", SOON, || {
        let now = entries(cluster)?;
        for (now, before) in now.iter().zip(before) {
            for (what, count) in now {
                let was = before.get(what).copied().unwrap_or(0.0);
                ensure!(*count <= was, "{what}: {count}, before the first case {was}");
            }
        }
        Ok(())
    })
}

/// No program, pin, table, rule, route or socket of ours is left on a node whose proxy has ended and was cleaned.
pub(crate) fn clean(node: &Node) -> Result<()> {
    let programs = metrics::attached(node)?;
    ensure!(programs == 0, "{programs} programs are still attached at {}", node.name);
    // Every bpffs is born with two files of the kernel's own, maps.debug and progs.debug.
    let pins = fs::read_dir(&node.bpffs)?.flatten().map(|pin| pin.path());
    let pins: Vec<_> = pins.filter(|pin| pin.extension().is_none_or(|end| end != "debug")).collect();
    ensure!(pins.is_empty(), "{} still has {pins:?}", node.name);
    let said = |program: &str, arguments: &str| node.netns.output(program, &arguments.split(' ').collect::<Vec<_>>());
    let tables = said("nft", "list tables")?;
    ensure!(!tables.contains("sheave"), "{} still has {tables}", node.name);
    for family in ["-4", "-6"] {
        let rules = said("ip", &format!("{family} rule"))?;
        ensure!(!rules.contains("15001"), "{} still has the rules\n{rules}", node.name);
        let routes = said("ip", &format!("{family} route show table all"))?;
        ensure!(!routes.contains("table 15001"), "{} still has the routes\n{routes}", node.name);
    }
    let sockets = said("ss", "-lntuH")?;
    ensure!(!sockets.contains(":15001"), "{} still has the sockets\n{sockets}", node.name);
    Ok(())
}
