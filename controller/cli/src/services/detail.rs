//! One Service as each node serves it: what is the same everywhere stands once, and what differs says where.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sheave_api::proto::{KnownService, NodeAnswer, ServedEndpoint, ServedFrontend, ServedService};

use super::list::hex;
use crate::args::Output;
use crate::finding::{Finding, Level};
use crate::table::Table;

/// What each node said.
pub(super) type Answers = BTreeMap<String, Result<NodeAnswer, String>>;

/// Names of nodes that a cell shows.
const SHOWN: usize = 3;

fn served(answers: &Answers) -> impl Iterator<Item = (&String, &ServedService)> {
    answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?.services.first()?)))
}

/// What is wrong with it. Nodes that are `excused` may have another version: it has changed since they were asked.
pub(super) fn judge(service: &KnownService, answers: &Answers, excused: &BTreeSet<&str>) -> Vec<Finding> {
    let about = format!("Service {}/{}", service.namespace, service.name);
    let mut findings = Vec::new();
    for fault in &service.faults {
        // Somebody asks about this very Service, so what is wrong with it is what is to be mended.
        findings.push(Finding { level: Level::Error, ..crate::status::fault(fault) });
    }
    for (node, answer) in answers {
        let place = format!("node {node}");
        match answer {
            Err(why) => findings.push(Finding::error(place, why, "what it serves is not known")),
            Ok(answer) if !answer.error.is_empty() => findings.push(Finding::error(place, &answer.error, "")),
            Ok(_) if excused.contains(&**node) => {}
            Ok(answer) => match answer.services.first() {
                None => findings.push(Finding::error(
                    place,
                    "it doesn't have this Service",
                    "`sheave status` says whether it lags",
                )),
                Some(served) if served.hash != service.hash => {
                    findings.push(Finding::error(
                        place,
                        "it has another version of this Service than the controller",
                        "`sheave status` says whether it lags, or refuses what is new",
                    ));
                }
                Some(_) => {}
            },
        }
    }
    let mut kept: BTreeMap<(&str, &str), ()> = BTreeMap::new();
    for frontend in
        served(answers).flat_map(|(_, served)| &served.frontends).filter(|frontend| !frontend.kept_by.is_empty())
    {
        kept.insert((&frontend.address, &frontend.kept_by), ());
    }
    // Where a controller knows, it has said so already.
    kept.retain(|(address, _), ()| !service.faults.iter().any(|fault| fault.message.contains(address)));
    for (address, by) in kept.into_keys() {
        findings.push(Finding::error(
            &about,
            format!("{by} keeps {address}"),
            "give one of them another address or port",
        ));
    }
    let mut any = served(answers).peekable();
    if any.peek().is_some() && any.all(|(_, served)| !served.endpoints.iter().any(|endpoint| endpoint.used)) {
        findings.push(Finding::error(
            about,
            "no endpoint takes connections, so they are refused",
            "a pod must be Ready, carry the selector's labels and have the port",
        ));
    }
    findings
}

/// The tables: frontends, then endpoints.
pub(super) fn text(service: &KnownService, answers: &Answers, output: Output) -> String {
    let wide = output == Output::Wide;
    let mut frontends = Table::new(&["FRONTEND", "KIND", "PORT", "BACKENDS", "STATE", "NODES"]);
    for (frontend, nodes) in grouped(answers, |served| &served.frontends, frontend_cells) {
        frontends.row(frontend.into_iter().chain([nodes]));
    }
    let mut headings = vec!["ENDPOINT", "PORTS", "STATE", "NODE", "ZONE", "USED BY"];
    if !wide {
        headings.retain(|heading| *heading != "ZONE");
    }
    let mut endpoints = Table::new(&headings);
    for (mut endpoint, nodes) in grouped(answers, |served| &served.endpoints, endpoint_cells) {
        if !wide {
            endpoint.pop();
        }
        endpoints.row(endpoint.into_iter().chain([nodes]));
    }
    let versions = served(answers).map(|(node, served)| format!("{node} {}", hex(&served.hash)));
    let versions: Vec<_> = versions.collect();
    let wide = if wide { format!("\nversions: {}\n", versions.join(", ")) } else { String::new() };
    format!("{}/{}\n\n{frontends}\n{endpoints}{wide}", service.namespace, service.name)
}

/// Rows that nodes have, each with the nodes that do; in the order in which the first node has them.
fn grouped<T>(
    answers: &Answers,
    all: impl Fn(&ServedService) -> &Vec<T>,
    cells: impl Fn(&T) -> (Vec<String>, bool),
) -> Vec<(Vec<String>, String)> {
    let mut rows: Vec<(Vec<String>, Vec<&str>)> = Vec::new();
    let mut at: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for (node, served) in served(answers) {
        for one in all(served) {
            let (cells, counts) = cells(one);
            let index = *at.entry(cells.clone()).or_insert_with(|| {
                rows.push((cells, Vec::new()));
                rows.len() - 1
            });
            if counts {
                rows[index].1.push(node);
            }
        }
    }
    let named = |nodes: Vec<&str>| match nodes.len() {
        length if length == answers.len() && length > 1 => "all".to_owned(),
        length @ 0..=SHOWN => {
            if length == 0 {
                "none".to_owned()
            } else {
                nodes.join(",")
            }
        }
        length => format!("{} of {}", length, answers.len()),
    };
    rows.into_iter().map(|(cells, nodes)| (cells, named(nodes))).collect()
}

fn frontend_cells(frontend: &ServedFrontend) -> (Vec<String>, bool) {
    let state = match (frontend.kept_by.as_str(), frontend.backends) {
        ("", 0) => "refused".to_owned(),
        ("", _) => "served".to_owned(),
        (by, _) => format!("kept by {by}"),
    };
    let cells = vec![
        frontend.address.clone(),
        frontend.kind.clone(),
        frontend.port.clone(),
        frontend.backends.to_string(),
        state,
    ];
    (cells, true)
}

fn endpoint_cells(endpoint: &ServedEndpoint) -> (Vec<String>, bool) {
    let state = match (endpoint.ready, endpoint.terminating, endpoint.serving) {
        (true, _, _) => "ready",
        (false, true, true) => "terminating, serving",
        (false, true, false) => "terminating",
        (false, false, _) => "not ready",
    };
    let ports = endpoint.ports.iter().map(|&port| if port == 0 { "-".to_owned() } else { port.to_string() });
    let ports = ports.collect::<Vec<_>>().join(",");
    let cells = vec![endpoint.address.clone(), ports, state.to_owned(), endpoint.node.clone(), endpoint.zone.clone()];
    (cells, endpoint.used)
}

/// A Service as one node serves it.
pub(super) fn served_json(served: &ServedService) -> Value {
    json!({
        "namespace": served.namespace,
        "name": served.name,
        "hash": hex(&served.hash),
        "frontends": served.frontends.iter().map(|frontend| json!({
            "address": frontend.address, "kind": frontend.kind, "port": frontend.port, "backends": frontend.backends,
            "keptBy": (!frontend.kept_by.is_empty()).then_some(&frontend.kept_by),
        })).collect::<Vec<_>>(),
        "endpoints": served.endpoints.iter().map(|endpoint| json!({
            "address": endpoint.address, "ports": endpoint.ports, "ready": endpoint.ready, "serving": endpoint.serving,
            "terminating": endpoint.terminating, "node": endpoint.node, "zone": endpoint.zone, "used": endpoint.used,
        })).collect::<Vec<_>>(),
    })
}

/// All there is.
pub(super) fn json(service: &KnownService, answers: &Answers) -> Value {
    let one = |(node, answer): (&String, &Result<NodeAnswer, String>)| {
        let said = match answer {
            Err(why) => json!({ "error": why }),
            Ok(answer) => answer.services.first().map_or(Value::Null, served_json),
        };
        (node.clone(), said)
    };
    json!({
        "namespace": service.namespace,
        "name": service.name,
        "hash": hex(&service.hash),
        "nodes": answers.iter().map(one).collect::<serde_json::Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(change: impl FnOnce(&mut ServedService)) -> Result<NodeAnswer, String> {
        let mut served = ServedService {
            namespace: "ns".into(),
            name: "web".into(),
            hash: vec![1; 16].into(),
            frontends: vec![ServedFrontend {
                address: "10.96.0.1:80/TCP".into(),
                kind: "ClusterIP".into(),
                port: "http".into(),
                backends: 1,
                kept_by: String::new(),
            }],
            endpoints: vec![ServedEndpoint {
                address: "10.1.0.2".into(),
                ports: vec![8080, 0],
                ready: true,
                serving: true,
                used: true,
                node: "a".into(),
                zone: "z".into(),
                ..ServedEndpoint::default()
            }],
        };
        change(&mut served);
        Ok(NodeAnswer { services: vec![served], ..NodeAnswer::default() })
    }

    fn known() -> KnownService {
        KnownService { namespace: "ns".into(), name: "web".into(), hash: vec![1; 16].into(), ..KnownService::default() }
    }

    #[test]
    fn what_is_the_same_everywhere_stands_once() {
        let answers = Answers::from([("a".into(), answer(|_| {})), ("b".into(), answer(|_| {}))]);
        let expected = "ns/web\n\n\
                        FRONTEND          KIND       PORT  BACKENDS  STATE   NODES\n\
                        10.96.0.1:80/TCP  ClusterIP  http  1         served  all\n\n\
                        ENDPOINT  PORTS   STATE  NODE  USED BY\n\
                        10.1.0.2  8080,-  ready  a     all\n";
        assert_eq!(text(&known(), &answers, Output::Table), expected);
        assert_eq!(judge(&known(), &answers, &BTreeSet::new()), []);
    }

    #[test]
    fn what_differs_says_where() {
        let other = answer(|served| {
            served.hash = vec![2; 16].into();
            served.endpoints[0].ready = false;
            served.endpoints[0].terminating = true;
        });
        let answers =
            Answers::from([("a".into(), answer(|_| {})), ("b".into(), other), ("c".into(), Err("late".into()))]);
        let shown = text(&known(), &answers, Output::Wide);
        assert!(shown.contains("terminating, serving  a     z     b\n"), "{shown}");
        let found: Vec<_> =
            judge(&known(), &answers, &BTreeSet::new()).into_iter().map(|f| (f.about, f.message)).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].0 == "node b" && found[0].1.contains("another version"), "{found:?}");
        assert!(found[1].0 == "node c" && found[1].1 == "late", "{found:?}");
        // It has changed since the nodes were asked, and b had everything before.
        let found = judge(&known(), &answers, &["b", "c"].into());
        assert!(matches!(&found[..], [one] if one.message == "late"), "{found:?}");
    }

    #[test]
    fn a_service_that_refuses_says_why() {
        let unused = || {
            answer(|served| {
                served.endpoints[0].used = false;
                served.frontends[0].backends = 0;
            })
        };
        let answers = Answers::from([("a".into(), unused()), ("b".into(), unused())]);
        let found = judge(&known(), &answers, &BTreeSet::new());
        assert!(matches!(&found[..], [one] if one.message.contains("no endpoint")), "{found:?}");
        assert!(text(&known(), &answers, Output::Table).contains("refused  all"), "{answers:?}");
        let kept = answer(|served| served.frontends[0].kept_by = "ns/old".into());
        let found = judge(&known(), &Answers::from([("a".into(), kept)]), &BTreeSet::new());
        assert!(matches!(&found[..], [one] if one.message == "ns/old keeps 10.96.0.1:80/TCP"), "{found:?}");
    }
}
