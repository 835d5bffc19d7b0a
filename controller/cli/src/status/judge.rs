//! What of a status is wrong, and how to mend it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use sheave_api::proto::{NodeStatus, Overview};

use super::{Node, State};
use crate::ask::World;
use crate::finding::Finding;

/// Bookmarks of a quiet API server come about once a minute.
const OLD_VIEW: u64 = 180_000;

/// Tokens that are valid for an hour bear less, logs are hard to compare long before.
const CLOCK: u64 = 30_000;

/// From here on a map is said to be nearly full, in percent.
const NEARLY_FULL: u64 = 80;

/// Maps that hold what has to fit; the others forget what is least needed, or have a place for everything.
pub(super) const BOUNDED: [&str; 4] = ["frontends", "slots", "backends", "targets"];

/// Findings of one kind that are named.
const NAMED: usize = 20;

/// What is wrong with controllers and with what they read.
pub(super) fn controllers(world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    for asked in &world.replicas {
        let about = format!("controller {}", asked.replica.name);
        match &asked.overview {
            Err(why) => findings.push(Finding::error(about, why, "nodes whose stream it has are not shown")),
            Ok(overview) => findings.extend(replica(&about, overview)),
        }
    }
    if !world.overviews().any(|overview| overview.leads) {
        let remedy = "Lease sheave-controller says who held it last; the controllers' logs say why nobody can take it";
        findings.push(Finding::error("controllers", "none of those that answer leads, so none writes", remedy));
    }
    let faults: BTreeSet<_> = world.overviews().flat_map(|overview| &overview.faults).map(fault).collect();
    let more = faults.len().saturating_sub(NAMED);
    findings.extend(faults.into_iter().take(NAMED));
    if more > 0 {
        findings.push(Finding::warning(
            "objects",
            format!("{more} more are not served as they are written"),
            "see -o json",
        ));
    }
    findings
}

fn replica(about: &str, overview: &Overview) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !overview.ready {
        let remedy = "it serves nobody yet; its log says what it can't list";
        findings.push(Finding::error(about, "it hasn't listed everything yet", remedy));
    } else if overview.age_millis > OLD_VIEW {
        let message = format!("it last heard from its source {} s ago", overview.age_millis / 1000);
        findings.push(Finding::warning(about, message, "its log says what it can't watch"));
    }
    findings.extend(clock(about, overview.unix_millis));
    findings.extend(overview.problems.iter().take(NAMED).map(|problem| Finding::warning("source", problem, "")));
    findings
}

pub(crate) fn fault(fault: &sheave_api::proto::Fault) -> Finding {
    Finding::warning(&fault.object, format!("{}: {}", fault.field, fault.message), &fault.remedy)
}

fn clock(about: &str, unix_millis: u64) -> Option<Finding> {
    let own = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let off = u64::try_from(own.as_millis()).unwrap_or(u64::MAX).abs_diff(unix_millis);
    (off > CLOCK).then(|| {
        let message = format!("its clock differs from this machine's by {} s", off / 1000);
        Finding::warning(
            about,
            message,
            "set both by NTP: tokens and certificates are refused by a clock that is wrong",
        )
    })
}

/// What is wrong with nodes. `alone`: they were asked by their own sockets.
pub(super) fn nodes(nodes: &[Node], alone: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in nodes {
        let about = format!("node {}", node.name);
        match (&node.status, node.state()) {
            (None, _) | (_, State::NoStream) => findings.push(Finding::error(
                &about,
                "it has no stream to a controller that answers",
                "look at its pod of DaemonSet sheave-proxy; `sheave --socket /var/lib/sheave/admin.sock status` there asks its proxy",
            )),
            (Some(Err(why)), _) => findings.push(Finding::error(&about, why, "its pod's log says more")),
            (Some(Ok(status)), _) => findings.extend(said(&about, status, alone)),
        }
        if node.behind > 0 {
            let message = format!("its data path lacks {} changes, and did a second ago", node.behind);
            let remedy = "its log and sheave_reconcile_errors_total say what the kernel refuses";
            findings.push(Finding::error(&about, message, remedy));
        }
        let told = node.stream.iter().flat_map(|stream| &stream.refused);
        let own = node.said().into_iter().flat_map(|status| &status.refused);
        let refused: BTreeMap<_, _> = told.chain(own).map(|one| (&one.resource, &one.reason)).collect();
        for (resource, reason) in refused.into_iter().take(NAMED) {
            let message = format!("it refuses {resource}: {reason}");
            findings.push(Finding::error(&about, message, "mend the object, or use one version everywhere"));
        }
    }
    findings
}

fn said(about: &str, status: &NodeStatus, alone: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !status.not_ready.is_empty() {
        findings.push(Finding::error(about, format!("it is not ready: {}", status.not_ready), "its log says more"));
    }
    if status.datapath == "userspace" && status.reason != "asked for" {
        let message = format!("it forwards in userspace: {}", status.reason);
        findings.push(Finding::warning(about, message, "`sheave check --node` there says what to change"));
    }
    if alone && status.controller.is_empty() {
        let age = status.age_millis.map_or_else(|| "nothing".to_owned(), |age| format!("a state {} s old", age / 1000));
        let message = format!("it has no controller and serves {age}");
        findings.push(Finding::warning(about, message, "its log says which addresses it tries and how they fail"));
    }
    if status.snapshot == "stale" {
        let message = "it serves the state on its disk, of another boot, without its own endpoints";
        findings.push(Finding::error(about, message, "it needs a controller"));
    }
    for map in status.maps.iter().filter(|map| BOUNDED.contains(&map.name.as_str()) && map.capacity > 0) {
        let percent = map.entries * 100 / map.capacity;
        let message = format!("map {} has {} of {} rows", map.name, map.entries, map.capacity);
        if map.entries >= map.capacity {
            findings.push(Finding::error(
                about,
                message,
                "listeners serve what has no row; use fewer Services or addresses",
            ));
        } else if percent >= NEARLY_FULL {
            findings.push(Finding::warning(about, message, "beyond that listeners serve, at their cost"));
        }
    }
    findings.extend(clock(about, status.unix_millis));
    findings
}

/// Versions that differ, as they do for a while during an upgrade.
pub(super) fn versions(world: &World, nodes: &[Node]) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for overview in world.overviews() {
        versions.entry(&overview.version).or_default().push(format!("controller {}", overview.replica));
    }
    for (name, stream) in nodes.iter().filter_map(|node| Some((&node.name, node.stream.as_ref()?))) {
        versions.entry(&stream.version).or_default().push(format!("node {name}"));
    }
    if versions.len() < 2 {
        return Vec::new();
    }
    let one = |(version, who): (&&str, &Vec<String>)| {
        let more = who.len().saturating_sub(3);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{version} on {}{rest}", who[..who.len() - more].join(", "))
    };
    let message = versions.iter().map(one).collect::<Vec<_>>().join("; ");
    vec![Finding::warning("versions", message, "as it should be during an upgrade only")]
}

#[cfg(test)]
mod tests {
    use sheave_api::proto::{MapFill, NodeStream, Refused};

    use super::*;
    use crate::finding::Level;

    fn node(change: impl FnOnce(&mut NodeStatus)) -> Node {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let mut status = NodeStatus {
            node: "n".to_owned(),
            datapath: "ebpf".to_owned(),
            reason: "this machine can".to_owned(),
            controller: "10.0.0.1:15010".to_owned(),
            unix_millis: now,
            ..NodeStatus::default()
        };
        change(&mut status);
        let stream = Some(NodeStream::default());
        Node { name: "n".to_owned(), stream, behind: 0, status: Some(Ok(status)) }
    }

    fn found(node: Node) -> Vec<(Level, String)> {
        nodes(&[node], false).into_iter().map(|finding| (finding.level, finding.message)).collect()
    }

    fn fill(entries: u64) -> MapFill {
        MapFill { name: "slots".to_owned(), entries, capacity: 100 }
    }

    #[test]
    fn a_node_that_is_well_is_not_mentioned() {
        assert_eq!(found(node(|_| {})), []);
        assert_eq!(
            found(node(|status| status.maps = vec![fill(79), MapFill { name: "flows".into(), ..fill(100) }])),
            []
        );
        let asked =
            |status: &mut NodeStatus| (status.datapath, status.reason) = ("userspace".into(), "asked for".into());
        assert_eq!(found(node(asked)), []);
    }

    #[test]
    fn each_trouble_has_its_level() {
        for (level, word, node) in [
            (Level::Warning, "80 of 100", node(|status| status.maps = vec![fill(80)])),
            (Level::Error, "100 of 100", node(|status| status.maps = vec![fill(100)])),
            (
                Level::Warning,
                "userspace: no BPF",
                node(|s| (s.datapath, s.reason) = ("userspace".into(), "no BPF".into())),
            ),
            (Level::Error, "not ready: starting", node(|status| status.not_ready = "starting".into())),
            (Level::Warning, "clock differs", node(|status| status.unix_millis -= CLOCK * 2)),
            (Level::Error, "another boot", node(|status| status.snapshot = "stale".into())),
            (Level::Error, "lacks 3 changes", Node { behind: 3, ..node(|_| {}) }),
            (Level::Error, "no stream", Node { stream: None, status: None, ..node(|_| {}) }),
            (Level::Error, "too late", Node { status: Some(Err("too late".into())), ..node(|_| {}) }),
        ] {
            let found = found(node);
            assert!(
                matches!(&found[..], [(its, message)] if *its == level && message.contains(word)),
                "{word}: {found:?}"
            );
        }
    }

    #[test]
    fn a_refusal_that_both_sides_tell_is_one_finding() {
        let refused = || vec![Refused { resource: "service a/b".to_owned(), reason: "no".to_owned() }];
        let mut node = node(|status| status.refused = refused());
        node.stream = Some(NodeStream { refused: refused(), ..NodeStream::default() });
        assert!(!node.is_programmed());
        assert_eq!(found(node).len(), 1);
    }
}
