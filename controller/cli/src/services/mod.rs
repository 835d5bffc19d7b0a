//! `sheave services`: every Service as controllers know it, or one as each node serves it.

mod detail;
mod list;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sheave_api::proto::node_question::What;
use sheave_api::proto::{KnownService, NodeAnswer, ServiceFilter};

use self::detail::Answers;
use crate::Report;
use crate::access::{self, socket};
use crate::args::{Common, ServicesArgs};
use crate::ask::World;
use crate::finding::Finding;

/// Nothing is known of this Service.
fn unknown(namespace: &str, name: &str, by: &str) -> Finding {
    Finding::error(
        format!("Service {namespace}/{name}"),
        format!("{by} knows none of this name"),
        "headless Services and ExternalNames are none of Sheave's; `sheave services` lists those that are",
    )
}

/// Asks, judges and shows.
///
/// # Errors
/// Where nobody could be asked.
pub(crate) async fn run(common: &Common, wanted: &ServicesArgs) -> anyhow::Result<Report> {
    let (namespace, name) = wanted.service.clone().unwrap_or_default();
    let filter = ServiceFilter { namespace, name };
    if let Some(path) = &common.socket {
        let page =
            format!("services?namespace={}&name={}", socket::quoted(&filter.namespace), socket::quoted(&filter.name));
        let answer = socket::ask(path, &page, Duration::from_secs(common.timeout)).await?;
        return Ok(of_one_node(answer, &filter, common));
    }
    let world = World::look(access::replicas(common).await?).await?;
    // Nodes first, so that controllers know of every change that a node may have.
    let asked =
        if filter.name.is_empty() { Answers::new() } else { world.ask_nodes(&What::Services(filter.clone())).await };
    let Known { services, changed, mut findings } = known(&world, &filter).await?;
    let nodes = world.nodes();
    if filter.name.is_empty() {
        findings.extend(list::judge(&services, nodes.len()));
        let text = list::table(&services, nodes.len(), common.output).to_string();
        return Ok(Report { text, json: list::json(&services, nodes.len()), findings });
    }
    let Some(service) = services.values().next() else {
        findings.push(unknown(&filter.namespace, &filter.name, "no controller"));
        return Ok(Report { text: String::new(), json: serde_json::json!({}), findings });
    };
    let silent = nodes
        .iter()
        .filter(|(_, at)| at.is_none())
        .map(|(node, _)| (node.clone(), Err("it has no stream to a controller that answers".to_owned())));
    let answers: Answers = asked.into_iter().chain(silent).collect();
    let excused = if changed { world.abreast().map(|(_, node)| node).collect() } else { BTreeSet::new() };
    findings.extend(detail::judge(service, &answers, &excused));
    let text = detail::text(service, &answers, common.output);
    Ok(Report { text, json: detail::json(service, &answers), findings })
}

/// What controllers know.
struct Known {
    services: list::Services,
    /// Whether one of them is another one than at the first look.
    changed: bool,
    /// Controllers that did not say.
    findings: Vec<Finding>,
}

/// Asks every controller.
///
/// # Errors
/// Where none answers.
async fn known(world: &World, filter: &ServiceFilter) -> anyhow::Result<Known> {
    let unasked = |replica: &str, why: &str| {
        Finding::error(format!("controller {replica}"), why, "its nodes count as not programmed")
    };
    let silent = world.replicas.iter().filter_map(|asked| Some((&asked.replica.name, asked.overview.as_ref().err()?)));
    let mut findings: Vec<Finding> = silent.map(|(replica, why)| unasked(replica, why)).collect();
    let (mut answers, mut changed) = (Vec::new(), false);
    for (replica, answer) in world.services(filter).await {
        match answer {
            Ok(mut list) => {
                changed |= credit(world, &replica, &mut list.services);
                answers.push(list.services);
            }
            Err(why) => findings.push(unasked(&replica, &why)),
        }
    }
    if answers.is_empty() {
        let why: Vec<_> = findings.iter().map(|finding| format!("{}: {}", finding.about, finding.message)).collect();
        anyhow::bail!("no controller answers: {}", why.join("; "));
    }
    Ok(Known { services: merged(answers), changed, findings })
}

/// A Service that has changed since the first look counts as programmed on the nodes that have everything as it was then: the
/// change may be on its way, and waiting for it would not help where changes never end. Returns whether there is such a Service.
fn credit(world: &World, replica: &str, services: &mut [KnownService]) -> bool {
    let mut any = false;
    for service in services.iter_mut().filter(|service| world.has_changed(replica, service.revision)) {
        any = true;
        let here = world.abreast().filter(|(at, _)| *at == replica).map(|(_, node)| node);
        let there = here.filter(|node| !service.refused_by.iter().any(|refused| refused == node)).count();
        service.programmed = service.programmed.max(u32::try_from(there).unwrap_or(u32::MAX));
    }
    any
}

fn of_one_node(answer: NodeAnswer, filter: &ServiceFilter, common: &Common) -> Report {
    let mut findings = Vec::new();
    if !answer.error.is_empty() {
        findings.push(Finding::error("answer", &answer.error, ""));
    }
    if filter.name.is_empty() {
        let text = list::node_table(&answer.services).to_string();
        return Report { text, json: list::node_json(&answer.services), findings };
    }
    if answer.services.is_empty() {
        findings.push(unknown(&filter.namespace, &filter.name, "this node"));
        return Report { text: String::new(), json: serde_json::json!({}), findings };
    }
    let service = KnownService {
        namespace: filter.namespace.clone(),
        name: filter.name.clone(),
        hash: answer.services[0].hash.clone(),
        ..KnownService::default()
    };
    let answers = BTreeMap::from([("this node".to_owned(), Ok(answer))]);
    findings.extend(detail::judge(&service, &answers, &BTreeSet::new()));
    let text = detail::text(&service, &answers, common.output);
    Report { text, json: detail::json(&service, &answers), findings }
}

/// What several replicas know, as one. Each counts its own nodes; where they know different versions, the newer one can't be
/// told, so the first replica's is shown.
fn merged(answers: Vec<Vec<KnownService>>) -> BTreeMap<(String, String), KnownService> {
    let mut all: BTreeMap<(String, String), KnownService> = BTreeMap::new();
    for service in answers.into_iter().flatten() {
        match all.get_mut(&(service.namespace.clone(), service.name.clone())) {
            Some(one) => {
                one.programmed += service.programmed;
                one.refused_by.extend(service.refused_by);
                let more = service.faults.into_iter().filter(|fault| !one.faults.contains(fault));
                let more: Vec<_> = more.collect();
                one.faults.extend(more);
            }
            None => drop(all.insert((service.namespace.clone(), service.name.clone()), service)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use sheave_api::proto::NodeStream;

    use super::*;

    #[test]
    fn a_change_since_the_first_look_is_no_fault_of_nodes_that_were_abreast() {
        let stream = |node: &str, programmed| NodeStream { node: node.into(), programmed, ..NodeStream::default() };
        let world = World::seen("one", 9, vec![stream("a", 9), stream("b", 10), stream("c", 8), stream("d", 9)]);
        let service = |revision, programmed| KnownService {
            revision,
            programmed,
            refused_by: vec!["d".into()],
            ..KnownService::default()
        };
        let mut services = [service(9, 1), service(10, 1), service(10, 3)];
        assert!(credit(&world, "one", &mut services));
        let programmed = services.each_ref().map(|service| service.programmed);
        assert_eq!(
            programmed,
            [1, 2, 3],
            "c lags and d refuses; what has not changed is counted by the controller alone"
        );
        assert!(!credit(&world, "one", &mut [service(9, 0)]));
        assert!(!credit(&world, "another", &mut [service(10, 0)]), "its revisions are its own");
    }

    #[test]
    fn replicas_each_count_their_own_nodes() {
        let fault = sheave_api::proto::Fault { field: "spec.ports[0]".into(), ..sheave_api::proto::Fault::default() };
        let service = |programmed, refused: &[&str]| KnownService {
            namespace: "a".into(),
            name: "b".into(),
            programmed,
            refused_by: refused.iter().map(|&node| node.to_owned()).collect(),
            faults: vec![fault.clone()],
            ..KnownService::default()
        };
        let merged = merged(vec![vec![service(2, &["n1"])], vec![service(3, &["n2"])]]);
        let one = &merged[&("a".to_owned(), "b".to_owned())];
        assert_eq!((one.programmed, one.refused_by.as_slice()), (5, ["n1".to_owned(), "n2".to_owned()].as_slice()));
        assert_eq!(one.faults.len(), 1, "both say the same");
    }
}
