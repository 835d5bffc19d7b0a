//! Many Services, a line each.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sheave_api::proto::{KnownService, ServedService};

use crate::args::Output;
use crate::finding::Finding;
use crate::table::Table;

/// Services by namespace and name.
pub(super) type Services = BTreeMap<(String, String), KnownService>;

/// Addresses that a line shows, unless all are asked for.
const SHOWN: usize = 2;

/// Findings of one kind that are named.
const NAMED: usize = 20;

/// What is wrong with them.
pub(super) fn judge(services: &Services, nodes: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in services.values() {
        let about = format!("Service {}/{}", service.namespace, service.name);
        if !service.refused_by.is_empty() {
            let message = format!("{} refuse it", service.refused_by.join(", "));
            findings.push(Finding::error(&about, message, "`sheave status` has their reasons"));
        } else if (service.programmed as usize) < nodes {
            let message = format!("programmed on {} of {nodes} nodes", service.programmed);
            findings.push(Finding::error(&about, message, "`sheave status` says which nodes lag"));
        }
        findings.extend(service.faults.iter().map(crate::status::fault));
    }
    let more = findings.len().saturating_sub(NAMED);
    findings.sort();
    findings.truncate(NAMED);
    if more > 0 {
        findings.push(Finding::warning("Services", format!("{more} findings more"), "see -o json"));
    }
    findings
}

/// Their addresses without ports, a few of them or all.
fn addresses(frontends: &[String], all: bool) -> String {
    let address =
        |frontend: &String| frontend.rsplit_once(':').map_or(frontend.as_str(), |(address, _)| address).to_owned();
    let mut seen = BTreeSet::new();
    let unique: Vec<String> = frontends.iter().map(address).filter(|address| seen.insert(address.clone())).collect();
    let shown = if all { unique.len() } else { SHOWN.min(unique.len()) };
    let more = if unique.len() > shown { format!(" +{}", unique.len() - shown) } else { String::new() };
    unique[..shown].join(",") + &more
}

fn endpoints(service: &KnownService) -> String {
    let terminating =
        if service.terminating > 0 { format!(" ({} terminating)", service.terminating) } else { String::new() };
    format!("{}/{}{terminating}", service.ready, service.endpoints)
}

/// The table.
pub(super) fn table(services: &Services, nodes: usize, output: Output) -> Table {
    let wide = output == Output::Wide;
    let mut headings = vec!["NAMESPACE", "NAME", "ADDRESSES", "PORTS", "READY", "PROGRAMMED"];
    if wide {
        headings.extend(["REVISION", "HASH"]);
    }
    let mut table = Table::new(&headings);
    for service in services.values() {
        let mut cells = vec![service.namespace.clone(), service.name.clone(), addresses(&service.frontends, wide)];
        cells.extend([service.ports.join(","), endpoints(service), format!("{}/{nodes}", service.programmed)]);
        if wide {
            cells.extend([service.revision.to_string(), hex(&service.hash)]);
        }
        table.row(cells);
    }
    table
}

/// The beginning of a hash; enough to compare by eye.
pub(super) fn hex(hash: &[u8]) -> String {
    hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// All there is.
pub(super) fn json(services: &Services, nodes: usize) -> Value {
    let one = |service: &KnownService| {
        json!({
            "namespace": service.namespace,
            "name": service.name,
            "frontends": service.frontends,
            "ports": service.ports,
            "ready": service.ready,
            "terminating": service.terminating,
            "endpoints": service.endpoints,
            "programmed": service.programmed,
            "nodes": nodes,
            "refusedBy": service.refused_by,
            "hash": hex(&service.hash),
            "faults": service.faults.iter().map(|fault| json!({
                "object": fault.object, "field": fault.field, "message": fault.message, "remedy": fault.remedy,
            })).collect::<Vec<_>>(),
        })
    };
    json!({ "services": services.values().map(one).collect::<Vec<_>>() })
}

/// What one node serves.
pub(super) fn node_table(services: &[ServedService]) -> Table {
    let mut table = Table::new(&["NAMESPACE", "NAME", "FRONTENDS", "KEPT BY OTHERS", "ENDPOINTS", "IN USE"]);
    for service in services {
        let lost = service.frontends.iter().filter(|frontend| !frontend.kept_by.is_empty()).count();
        let used = service.endpoints.iter().filter(|endpoint| endpoint.used).count();
        let counts = [service.frontends.len(), lost, service.endpoints.len(), used];
        let names = [service.namespace.clone(), service.name.clone()];
        table.row(names.into_iter().chain(counts.map(|count| count.to_string())));
    }
    table
}

/// The same for programs.
pub(super) fn node_json(services: &[ServedService]) -> Value {
    json!({ "services": services.iter().map(super::detail::served_json).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    fn service(name: &str, change: impl FnOnce(&mut KnownService)) -> ((String, String), KnownService) {
        let mut service = KnownService {
            namespace: "ns".into(),
            name: name.into(),
            frontends: ["10.96.0.1:80/TCP", "10.96.0.1:443/TCP", "[fd00::1]:80/TCP", "192.0.2.1:80/TCP"]
                .map(Into::into)
                .into(),
            ports: vec!["80:30080/TCP".into(), "443/TCP".into()],
            ready: 2,
            terminating: 1,
            endpoints: 3,
            programmed: 2,
            ..KnownService::default()
        };
        change(&mut service);
        (("ns".into(), name.into()), service)
    }

    #[test]
    fn a_line_has_what_fits_and_wide_has_all() {
        let services = Services::from([service("web", |_| {})]);
        let expected = "NAMESPACE  NAME  ADDRESSES               PORTS                 READY                PROGRAMMED\n\
                        ns         web   10.96.0.1,[fd00::1] +1  80:30080/TCP,443/TCP  2/3 (1 terminating)  2/2\n";
        assert_eq!(table(&services, 2, Output::Table).to_string(), expected);
        assert!(table(&services, 2, Output::Wide).to_string().contains("10.96.0.1,[fd00::1],192.0.2.1 "));
        assert_eq!(judge(&services, 2), []);
    }

    #[test]
    fn what_a_node_lacks_or_refuses_is_an_error() {
        let services = Services::from([
            service("a", |service| service.programmed = 1),
            service("b", |service| service.refused_by = vec!["n1".into()]),
        ]);
        let found: Vec<_> = judge(&services, 2).into_iter().map(|finding| (finding.level, finding.message)).collect();
        assert_eq!(found, [(Level::Error, "programmed on 1 of 2 nodes".into()), (Level::Error, "n1 refuse it".into())]);
    }

    #[test]
    fn findings_are_bounded() {
        let all = (0..100).map(|n| service(&format!("s{n}"), |service| service.programmed = 0));
        assert_eq!(judge(&all.collect(), 1).len(), NAMED + 1);
    }
}
