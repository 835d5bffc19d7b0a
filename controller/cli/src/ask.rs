//! What replicas and nodes say, put together: every replica knows only the nodes whose streams it has.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use sheave_api::proto::node_question::What;
use sheave_api::proto::{LookRequest, NodeAnswer, NodeQuestion, NodeStream, Overview, ServiceFilter, ServiceList};

use crate::access::Replica;

/// Nodes asked at a time; a replica takes eight calls on a connection.
const AT_A_TIME: usize = 8;

/// A change reaches every node well within this; a node that is still behind then is said to be.
const SETTLES: Duration = Duration::from_secs(1);

/// A replica and what it said.
pub(crate) struct Asked {
    pub(crate) replica: Replica,
    pub(crate) overview: Result<Overview, String>,
}

/// What was found out from controllers.
pub(crate) struct World {
    pub(crate) replicas: Vec<Asked>,
    /// How far a node lags behind its replica, in changes of the catalog; only those that do.
    pub(crate) behind: BTreeMap<String, u64>,
    /// Each replica's revision at the first look: what nodes are measured by, however fast changes come.
    first: BTreeMap<String, u64>,
}

impl World {
    /// Asks all of them about themselves.
    ///
    /// # Errors
    /// Where none answers: what each said.
    pub(crate) async fn look(replicas: Vec<Replica>) -> anyhow::Result<Self> {
        let mut asked = look(replicas).await;
        if asked.iter().all(|one| one.overview.is_err()) {
            let mut why: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (one, said) in asked.iter().filter_map(|one| Some((one, one.overview.as_ref().err()?))) {
                why.entry(said).or_default().push(&one.replica.name);
            }
            let why: Vec<_> = why.into_iter().map(|(why, who)| format!("{}: {why}", who.join(", "))).collect();
            anyhow::bail!("no controller answers: {}", why.join("; "));
        }
        let first = revisions(&asked);
        let mut behind = lag(&asked, &first);
        if !behind.is_empty() {
            tokio::time::sleep(SETTLES).await;
            asked = look(asked.into_iter().map(|one| one.replica).collect()).await;
            behind = lag(&asked, &first);
        }
        Ok(Self { replicas: asked, behind, first })
    }

    /// Whether something that a replica changed last at `revision` was another at the first look, so that nodes need not have it.
    pub(crate) fn has_changed(&self, replica: &str, revision: u64) -> bool {
        self.first.get(replica).is_some_and(|&first| revision > first)
    }

    /// The streams, by replica and node, of nodes that have everything as it was at the first look.
    pub(crate) fn abreast(&self) -> impl Iterator<Item = (&str, &str)> {
        let answered = self.replicas.iter().filter_map(|asked| Some((&asked.replica, asked.overview.as_ref().ok()?)));
        let streams = answered
            .flat_map(|(replica, overview)| overview.streams.iter().map(|stream| (&*replica.name, &*stream.node)));
        streams.filter(|(_, node)| !self.behind.contains_key(*node))
    }

    /// What those that answered said.
    pub(crate) fn overviews(&self) -> impl Iterator<Item = &Overview> {
        self.replicas.iter().filter_map(|asked| asked.overview.as_ref().ok())
    }

    /// What one look at one replica finds.
    #[cfg(test)]
    pub(crate) fn seen(replica: &str, revision: u64, streams: Vec<NodeStream>) -> Self {
        let overview = Overview { revision, streams, ..Overview::default() };
        let replicas = vec![Asked { replica: Replica::unreachable(replica), overview: Ok(overview) }];
        let first = revisions(&replicas);
        Self { behind: lag(&replicas, &first), replicas, first }
    }

    /// Every node that exists or has a stream, with its newest stream and the replica that has it.
    pub(crate) fn nodes(&self) -> BTreeMap<String, Option<(&Replica, &NodeStream)>> {
        let mut nodes: BTreeMap<String, Option<(&Replica, &NodeStream)>> = BTreeMap::new();
        for asked in &self.replicas {
            let Ok(overview) = &asked.overview else { continue };
            for name in &overview.nodes {
                nodes.entry(name.clone()).or_default();
            }
            for stream in &overview.streams {
                let best = nodes.entry(stream.node.clone()).or_default();
                if best.is_none_or(|(_, other)| stream.connected_seconds < other.connected_seconds) {
                    *best = Some((&asked.replica, stream));
                }
            }
        }
        nodes
    }

    /// Asks each node that has a stream.
    pub(crate) async fn ask_nodes(&self, what: &What) -> BTreeMap<String, Result<NodeAnswer, String>> {
        let nodes = self.nodes().into_iter().filter_map(|(node, at)| Some((node, at?.0)));
        let asked = nodes.map(|(node, replica)| async move {
            let answer = replica.within(ask_node(replica, &node, what)).await;
            (node, answer)
        });
        futures::stream::iter(asked).buffer_unordered(AT_A_TIME).collect().await
    }

    /// Asks each replica for the Services that a filter names.
    pub(crate) async fn services(&self, filter: &ServiceFilter) -> Vec<(String, Result<ServiceList, String>)> {
        let answered = self.replicas.iter().filter(|asked| asked.overview.is_ok());
        let asked = answered.map(|asked| async move {
            (asked.replica.name.clone(), asked.replica.within(services_of(&asked.replica, filter)).await)
        });
        futures::future::join_all(asked).await
    }
}

async fn look(replicas: Vec<Replica>) -> Vec<Asked> {
    let one = |replica: Replica| async move {
        let overview = async {
            let answer = replica.client()?.look(replica.request(LookRequest {})).await;
            answer.map(tonic::Response::into_inner).map_err(|status| said(&status))
        };
        Asked { overview: replica.within(overview).await, replica }
    };
    futures::future::join_all(replicas.into_iter().map(one)).await
}

/// Each replica's revision, by its name.
fn revisions(asked: &[Asked]) -> BTreeMap<String, u64> {
    let one = |one: &Asked| Some((one.replica.name.clone(), one.overview.as_ref().ok()?.revision));
    asked.iter().filter_map(one).collect()
}

/// Nodes that don't have what their replica had at `revisions`.
fn lag(asked: &[Asked], revisions: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut behind = BTreeMap::new();
    for one in asked {
        let (Ok(overview), Some(&revision)) = (&one.overview, revisions.get(&one.replica.name)) else { continue };
        for stream in overview.streams.iter().filter(|stream| stream.programmed < revision) {
            behind.insert(stream.node.clone(), revision - stream.programmed);
        }
    }
    behind
}

async fn ask_node(replica: &Replica, node: &str, what: &What) -> Result<NodeAnswer, String> {
    let question = NodeQuestion { node: node.to_owned(), what: Some(what.clone()) };
    let mut parts = replica.client()?.ask_node(replica.request(question)).await.map_err(|e| said(&e))?.into_inner();
    let mut whole = NodeAnswer::default();
    while let Some(part) = parts.message().await.map_err(|status| said(&status))? {
        whole.status = part.status.or(whole.status);
        whole.services.extend(part.services);
        whole.error.push_str(&part.error);
    }
    Ok(whole)
}

async fn services_of(replica: &Replica, filter: &ServiceFilter) -> Result<ServiceList, String> {
    let asked = replica.client()?.known_services(replica.request(filter.clone())).await;
    let mut lists = asked.map_err(|status| said(&status))?.into_inner();
    let mut whole = ServiceList::default();
    while let Some(list) = lists.message().await.map_err(|status| said(&status))? {
        whole.services.extend(list.services);
    }
    Ok(whole)
}

/// A refusal as an operator reads it.
fn said(status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::Unimplemented => "its version is older than this program's and has no answers".to_owned(),
        tonic::Code::Cancelled | tonic::Code::DeadlineExceeded if status.message().is_empty() => {
            "no answer came in time".to_owned()
        }
        _ if status.message().is_empty() => status.code().to_string(),
        _ => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, revision: u64, streams: &[(&str, u64, u64)]) -> Asked {
        let stream = |&(node, connected_seconds, programmed): &(&str, u64, u64)| NodeStream {
            node: node.to_owned(),
            connected_seconds,
            programmed,
            ..NodeStream::default()
        };
        let overview = Overview {
            revision,
            nodes: vec!["a".into(), "b".into(), "c".into()],
            streams: streams.iter().map(stream).collect(),
            ..Overview::default()
        };
        Asked { replica: Replica::unreachable(name), overview: Ok(overview) }
    }

    #[test]
    fn a_node_is_asked_by_its_newest_stream_and_one_without_is_known() {
        let replicas = vec![asked("one", 9, &[("a", 500, 9), ("b", 5, 9)]), asked("two", 40, &[("a", 3, 40)])];
        let world = World { replicas, behind: BTreeMap::new(), first: BTreeMap::new() };
        let by: Vec<_> = world.nodes().into_iter().map(|(node, at)| (node, at.map(|(r, _)| r.name.clone()))).collect();
        let expected = [("a", Some("two")), ("b", Some("one")), ("c", None)];
        assert_eq!(by, expected.map(|(node, by)| (node.to_owned(), by.map(str::to_owned))));
    }

    #[test]
    fn revisions_are_each_replicas_own() {
        let before = revisions(&[asked("one", 9, &[]), asked("two", 40, &[])]);
        let now = [asked("one", 12, &[("a", 1, 9), ("b", 1, 7)]), asked("two", 41, &[("c", 1, 40)])];
        assert_eq!(
            lag(&now, &before),
            BTreeMap::from([("b".to_owned(), 2)]),
            "what came since the first look counts not"
        );
    }
}
