//! `sheave services`: every Service as controllers know it, or one as each node serves it.

mod detail;
mod list;

use std::collections::BTreeMap;
use std::time::Duration;

use sheave_api::proto::node_question::What;
use sheave_api::proto::{KnownService, NodeAnswer, ServiceFilter};

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
    let mut findings = Vec::new();
    for asked in &world.replicas {
        if let Err(why) = &asked.overview {
            let about = format!("controller {}", asked.replica.name);
            findings.push(Finding::error(about, why, "its nodes count as not programmed"));
        }
    }
    let mut answers = Vec::new();
    for (replica, answer) in world.services(&filter).await {
        match answer {
            Ok(list) => answers.push(list.services),
            Err(why) => {
                findings.push(Finding::error(format!("controller {replica}"), why, "its nodes count as not programmed"))
            }
        }
    }
    if answers.is_empty() {
        let why: Vec<_> = findings.iter().map(|finding| format!("{}: {}", finding.about, finding.message)).collect();
        anyhow::bail!("no controller answers: {}", why.join("; "));
    }
    let services = merged(answers);
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
    let asked = world.ask_nodes(&What::Services(filter)).await;
    let silent = nodes
        .iter()
        .filter(|(_, at)| at.is_none())
        .map(|(node, _)| (node.clone(), Err("it has no stream to a controller that answers".to_owned())));
    let answers: BTreeMap<String, Result<NodeAnswer, String>> = asked.into_iter().chain(silent).collect();
    findings.extend(detail::judge(service, &answers));
    let text = detail::text(service, &answers, common.output);
    Ok(Report { text, json: detail::json(service, &answers), findings })
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
    findings.extend(detail::judge(&service, &answers));
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
    use super::*;

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
