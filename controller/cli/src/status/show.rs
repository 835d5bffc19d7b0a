//! A status as tables and as JSON.

use serde_json::{Value, json};
use sheave_api::proto::NodeStatus;

use super::judge::BOUNDED;
use super::{Node, State};
use crate::args::Output;
use crate::ask::Asked;
use crate::table::{Table, age};

/// The tables.
pub(super) fn text(replicas: &[Asked], nodes: &[Node], output: Output) -> String {
    let wide = output == Output::Wide;
    let mut text = String::new();
    if !replicas.is_empty() {
        text = format!("{}\n", controllers(replicas, wide));
    }
    let programmed = nodes.iter().filter(|node| node.is_programmed()).count();
    text + &format!("{}\nprogrammed: {programmed} of {} nodes\n", table(nodes, wide), nodes.len())
}

fn controllers(replicas: &[Asked], wide: bool) -> Table {
    let mut headings = vec!["CONTROLLER", "READY", "LEADS", "PROXIES", "SERVICES", "REVISION", "VIEW AGE", "VERSION"];
    if wide {
        headings.extend(["REPLICA", "SOURCE"]);
    }
    let mut table = Table::new(&headings);
    for asked in replicas {
        let mut cells = vec![asked.replica.name.clone()];
        match &asked.overview {
            Err(_) => {
                cells.push("no answer".to_owned());
                cells.resize(headings.len(), String::new());
            }
            Ok(overview) => {
                cells.extend([yes(overview.ready), yes(overview.leads)]);
                cells.extend([overview.streams.len().to_string(), overview.services.to_string()]);
                cells.extend([
                    overview.revision.to_string(),
                    age(overview.age_millis / 1000),
                    overview.version.clone(),
                ]);
                if wide {
                    cells.extend([overview.replica.clone(), overview.source.clone()]);
                }
            }
        }
        table.row(cells);
    }
    table
}

fn table(nodes: &[Node], wide: bool) -> Table {
    let mut headings =
        vec!["NODE", "STATE", "DATAPATH", "PROGRAMMED", "REVISION", "SERVICES", "FULLEST MAP", "ERRORS", "VERSION"];
    if wide {
        headings.extend(["FRONTENDS", "SNAPSHOT", "AGE", "KERNEL", "CONTROLLER", "WHY"]);
    }
    let mut table = Table::new(&headings);
    for node in nodes {
        let mut cells = vec![node.name.clone(), node.state().name().to_owned()];
        let said = node.said();
        let of = |show: fn(&NodeStatus) -> String| said.map(show).unwrap_or_default();
        cells.extend([of(|status| status.datapath.clone()), programmed(node), revision(node)]);
        cells.extend([of(|status| status.services.to_string()), of(fullest), of(errors), version(node)]);
        if wide {
            cells.extend([of(|status| status.frontends.to_string()), of(|status| status.snapshot.clone())]);
            cells.push(of(|status| status.age_millis.map(|millis| age(millis / 1000)).unwrap_or_default()));
            cells.extend([of(|status| status.kernel.clone()), of(|status| status.controller.clone())]);
            cells.push(of(|status| status.reason.clone()));
        }
        table.row(cells);
    }
    table
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn programmed(node: &Node) -> String {
    let refused = node.stream.as_ref().map_or(0, |stream| stream.refused.len());
    match (node.is_programmed(), node.state()) {
        (true, _) => "yes".to_owned(),
        (false, State::NoStream) => String::new(),
        (false, _) if node.behind > 0 => format!("{} behind", node.behind),
        (false, _) if refused > 0 => format!("refuses {refused}"),
        (false, _) => "no".to_owned(),
    }
}

/// Of the replica's catalog where there is a stream, else of the proxy's own counting.
fn revision(node: &Node) -> String {
    match (&node.stream, node.said()) {
        (Some(stream), _) => stream.programmed.to_string(),
        (None, Some(status)) => status.applied.to_string(),
        (None, None) => String::new(),
    }
}

fn version(node: &Node) -> String {
    let said = node.said().map(|status| status.version.clone());
    said.or_else(|| Some(node.stream.as_ref()?.version.clone())).unwrap_or_default()
}

/// Of the maps that have to hold everything.
fn fullest(status: &NodeStatus) -> String {
    let bounded = status.maps.iter().filter(|map| BOUNDED.contains(&map.name.as_str()) && map.capacity > 0);
    let fullest = bounded.max_by_key(|map| map.entries.saturating_mul(1_000_000) / map.capacity);
    fullest.map(|map| format!("{} {} %", map.name, map.entries * 100 / map.capacity)).unwrap_or_default()
}

fn errors(status: &NodeStatus) -> String {
    status.errors.iter().map(|count| count.value).sum::<u64>().to_string()
}

/// All there is.
pub(super) fn json(replicas: &[Asked], nodes: &[Node]) -> Value {
    let controllers = replicas.iter().map(|asked| match &asked.overview {
        Err(why) => json!({ "name": asked.replica.name, "error": why }),
        Ok(overview) => json!({
            "name": asked.replica.name,
            "replica": overview.replica,
            "version": overview.version,
            "ready": overview.ready,
            "leads": overview.leads,
            "source": overview.source,
            "viewAgeMilliseconds": overview.age_millis,
            "revision": overview.revision,
            "services": overview.services,
            "caExpires": (overview.ca_expires > 0).then_some(overview.ca_expires),
            "proxies": overview.streams.iter().map(|stream| &stream.node).collect::<Vec<_>>(),
            "faults": overview.faults.iter().map(|fault| json!({
                "object": fault.object, "field": fault.field, "message": fault.message, "remedy": fault.remedy,
            })).collect::<Vec<_>>(),
            "faultsLeftOut": overview.faults_left_out,
        }),
    });
    json!({
        "controllers": controllers.collect::<Vec<_>>(),
        "nodes": nodes.iter().map(node_json).collect::<Vec<_>>(),
        "programmed": nodes.iter().filter(|node| node.is_programmed()).count(),
        "total": nodes.len(),
    })
}

fn node_json(node: &Node) -> Value {
    let refused = node.stream.iter().flat_map(|stream| &stream.refused);
    let mut json = json!({
        "name": node.name,
        "state": node.state().name(),
        "programmed": node.is_programmed(),
        "behind": node.behind,
        "refused": refused.map(|one| (one.resource.clone(), json!(one.reason))).collect::<serde_json::Map<_, _>>(),
        "revision": node.stream.as_ref().map(|stream| stream.programmed),
        "connectedSeconds": node.stream.as_ref().map(|stream| stream.connected_seconds),
        "version": version(node),
    });
    match &node.status {
        None => {}
        Some(Err(why)) => json["error"] = json!(why),
        Some(Ok(status)) => {
            json["status"] = json!({
                "kernel": status.kernel,
                "notReady": (!status.not_ready.is_empty()).then_some(&status.not_ready),
                "datapath": status.datapath,
                "reason": status.reason,
                "snapshot": status.snapshot,
                "ageMilliseconds": status.age_millis,
                "controller": status.controller,
                "revisionReceived": status.received,
                "revisionApplied": status.applied,
                "services": status.services,
                "frontends": status.frontends,
                "shadowed": status.shadowed,
                "maps": status.maps.iter().map(|map| json!({
                    "name": map.name, "entries": map.entries, "capacity": map.capacity,
                })).collect::<Vec<_>>(),
                "errors": status.errors.iter().map(|count| (count.name.clone(), json!(count.value))).collect::<serde_json::Map<_, _>>(),
            });
        }
    }
    json
}
