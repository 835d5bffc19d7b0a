//! `sheave status`: every controller and every node, what is programmed, and what is wrong.

mod judge;
mod show;

use std::collections::BTreeMap;
use std::time::Duration;

use sheave_api::proto::node_question::What;
use sheave_api::proto::{NodeStatus, NodeStatusWanted, NodeStream};

pub(crate) use self::judge::fault;
use crate::access::{self, socket};
use crate::args::Common;
use crate::ask::World;
use crate::finding::Finding;
use crate::{Report, finding};

/// What is known of a node.
#[derive(Clone, Debug, Default)]
struct Node {
    name: String,
    /// Its stream to a controller, where it has one.
    stream: Option<NodeStream>,
    /// Changes that it doesn't have yet.
    behind: u64,
    /// What its proxy says; none where nobody could ask it.
    status: Option<Result<NodeStatus, String>>,
}

/// How a node is, in one word or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    NotReady,
    NoAnswer,
    NoStream,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not ready",
            Self::NoAnswer => "no answer",
            Self::NoStream => "no stream",
        }
    }
}

impl Node {
    fn said(&self) -> Option<&NodeStatus> {
        self.status.as_ref()?.as_ref().ok()
    }

    fn state(&self) -> State {
        match &self.status {
            None => State::NoStream,
            Some(Err(_)) => State::NoAnswer,
            Some(Ok(status)) if status.not_ready.is_empty() => State::Ready,
            Some(Ok(_)) => State::NotReady,
        }
    }

    /// Whether its data paths have everything, as far as a controller or the proxy itself says.
    fn is_programmed(&self) -> bool {
        let applied = self.said().is_none_or(|status| status.applied >= status.received);
        match &self.stream {
            Some(stream) => self.behind == 0 && stream.refused.is_empty(),
            None => self.state() == State::Ready && applied,
        }
    }
}

/// Asks, judges and shows.
///
/// # Errors
/// Where nobody could be asked.
pub(crate) async fn run(common: &Common) -> anyhow::Result<Report> {
    if let Some(path) = &common.socket {
        let answer = socket::ask(path, "status", Duration::from_secs(common.timeout)).await?;
        let status = answer.status.ok_or_else(|| anyhow::anyhow!("the proxy's answer has no status"))?;
        let node = Node { name: status.node.clone(), status: Some(Ok(status)), ..Node::default() };
        let mut findings = judge::nodes(std::slice::from_ref(&node), true);
        findings.push(Finding::warning(
            "controllers",
            "not asked: this is what one node's proxy says of itself",
            "without --socket all nodes are asked",
        ));
        return Ok(report(&[], &[node], findings, common));
    }
    let world = World::look(access::replicas(common).await?).await?;
    let mut answers = world.ask_nodes(&What::Status(NodeStatusWanted {})).await;
    let nodes = world.nodes().into_iter().map(|(name, at)| {
        let status = answers
            .remove(&name)
            .map(|answer| answer.and_then(|answer| answer.status.ok_or_else(|| "its answer has no status".to_owned())));
        let behind = world.behind.get(&name).copied().unwrap_or_default();
        Node { stream: at.map(|(_, stream)| stream.clone()), behind, status, name }
    });
    let nodes: Vec<Node> = nodes.collect();
    let mut findings = judge::controllers(&world);
    findings.extend(judge::nodes(&nodes, false));
    findings.extend(judge::versions(&world, &nodes));
    Ok(report(&world.replicas, &nodes, findings, common))
}

fn report(replicas: &[crate::ask::Asked], nodes: &[Node], findings: Vec<Finding>, common: &Common) -> Report {
    let text = show::text(replicas, nodes, common.output);
    let json = show::json(replicas, nodes);
    Report { text, json, findings: finding_order(findings) }
}

/// The same finding of several nodes stands together.
fn finding_order(findings: Vec<Finding>) -> Vec<Finding> {
    let mut by: BTreeMap<finding::Level, Vec<Finding>> = BTreeMap::new();
    for finding in findings {
        by.entry(finding.level).or_default().push(finding);
    }
    by.into_values().flatten().collect()
}
