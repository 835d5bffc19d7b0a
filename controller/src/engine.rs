//! The index task: takes in batches, computes and encodes what has changed, publishes it. The only owner of the index.
//!
//! Nothing waits on purpose: batches that are there already are taken together, the rest follows as it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sheave_api::{Encoded, MAX_RESOURCE_BYTES, encode_resource};
use sheave_index::{Condition, Index, Kind, ObjectKey};
use sheave_model::{ResourceKey, View};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::publish::{Change, Lists, Publisher, Standing};
use crate::source::{Batch, Event};

/// Batches that are taken together at most, so that a flood of them is published in steps.
const TOGETHER: usize = 64;

/// The label of the proxies' Pods in the controller's own namespace, as the DaemonSet has it.
const PROXIES: (&str, &str) = ("app.kubernetes.io/name", "sheave-proxy");

/// Problems of a source that are kept for the admin page.
const MAX_PROBLEMS: usize = 1000;

/// What is wrong, for the admin page.
#[derive(Debug, Default)]
pub(crate) struct Wrong {
    /// With objects.
    pub(crate) conditions: Vec<Condition>,
    /// At the source.
    pub(crate) problems: Vec<String>,
}

/// A question to the index task.
pub(crate) type Question = oneshot::Sender<Wrong>;

/// The index task answers within this time, once there is one and it isn't overrun.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is wrong now. `None` while no source is being read, or when the index task has no time to answer.
pub(crate) async fn wrong(questions: &mpsc::Sender<Question>) -> Option<Wrong> {
    let (question, answer) = oneshot::channel();
    let asked = async {
        questions.send(question).await.ok()?;
        answer.await.ok()
    };
    tokio::time::timeout(PATIENCE, asked).await.ok()?
}

/// Owns the index.
#[derive(Debug)]
pub(crate) struct Engine {
    index: Index,
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    source: String,
    /// The controller's own namespace, where there is one.
    home: Option<String>,
    /// The Nodes that a proxy's Pod is on.
    proxied: Arc<BTreeSet<Arc<str>>>,
    lists: BTreeMap<Kind, Lists>,
    heard: BTreeMap<Kind, Instant>,
    problems: Vec<String>,
    ready: bool,
}

impl Engine {
    /// For a source with this id, and a controller that lives in namespace `home` of it.
    pub(crate) fn new(source: String, home: Option<String>, publisher: Arc<Publisher>, metrics: Arc<Metrics>) -> Self {
        let (lists, heard, problems) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let (index, proxied) = (Index::default(), Arc::default());
        Self { index, publisher, metrics, source, home, proxied, lists, heard, problems, ready: false }
    }

    /// Runs until the source has ended.
    pub(crate) async fn run(mut self, mut batches: mpsc::Receiver<Batch>, mut questions: mpsc::Receiver<Question>) {
        let mut together = Vec::with_capacity(TOGETHER);
        loop {
            tokio::select! {
                biased;
                count = batches.recv_many(&mut together, TOGETHER) => {
                    if count == 0 {
                        return;
                    }
                    self.take_in(&mut together);
                }
                Some(question) = questions.recv() => {
                    let conditions = self.index.conditions().cloned().collect();
                    // Whoever asked may be gone.
                    let _ = question.send(Wrong { conditions, problems: self.problems.clone() });
                }
            }
        }
    }

    fn take_in(&mut self, batches: &mut Vec<Batch>) {
        let observed = batches.iter().map(|batch| batch.observed_unix_nanos).max().unwrap_or_default();
        let (mut dirty, now) = (BTreeSet::new(), Instant::now());
        let mut moved = false;
        for event in batches.drain(..).flat_map(|batch| batch.events) {
            self.hear(&event, now);
            moved |= self.may_move_proxies(&event);
            dirty.extend(self.apply(event)); // not `append`, which rebuilds the whole set each time
        }
        let was_ready = self.ready;
        self.ready = self.ready || Kind::ALL.iter().all(|kind| self.lists.get(kind).is_some_and(|list| list.ended > 0));
        let changes = match (was_ready, self.ready) {
            (_, false) => Vec::new(),
            (false, true) => {
                let keys = self.index.keys();
                self.compute(keys)
            }
            (true, true) => self.compute(dirty),
        };
        if let (true, Some(home)) = (moved, &self.home) {
            let (key, value) = PROXIES;
            self.proxied = Arc::new(self.index.nodes_with(home, &(key.into(), value.into())));
        }
        if !was_ready && self.ready {
            info!(resources = changes.len(), source = self.source, "everything has been listed once; serving");
        }
        let view = View { source: self.source.clone(), versions: self.index.view() };
        let (lists, heard, proxied) = (self.lists.clone(), self.heard.clone(), self.proxied.clone());
        let standing = Standing { ready: self.ready, view, lists, heard, proxied };
        // The first list says nothing about latency, whatever came with it.
        let observed = if was_ready { observed } else { 0 };
        self.publisher.publish(changes, observed, standing);
        self.report();
    }

    /// Notes of which kinds an event proves that the source was heard from.
    fn hear(&mut self, event: &Event, now: Instant) {
        let kind = match event {
            Event::Apply(object) => object.key.kind,
            Event::Delete(key) => key.kind,
            Event::EndResync(kind, _) | Event::Seen(kind, _) | Event::Heard(Some(kind)) => *kind,
            Event::Heard(None) => return self.heard.extend(Kind::ALL.map(|kind| (kind, now))),
            // A list that begins was only asked for.
            Event::BeginResync(_) | Event::Problems(_) => return,
        };
        self.heard.insert(kind, now);
    }

    /// Whether an event is about a Pod of the controller's own namespace.
    fn may_move_proxies(&self, event: &Event) -> bool {
        let at_home = |key: &ObjectKey| key.kind == Kind::Pod && self.home.as_deref() == Some(&*key.namespace);
        match event {
            Event::Apply(object) => at_home(&object.key),
            Event::Delete(key) => at_home(key),
            Event::EndResync(kind, _) => *kind == Kind::Pod,
            Event::BeginResync(_) | Event::Seen(..) | Event::Heard(_) | Event::Problems(_) => false,
        }
    }

    fn apply(&mut self, event: Event) -> BTreeSet<ResourceKey> {
        match event {
            Event::BeginResync(kind) => {
                self.lists.entry(kind).or_default().begun += 1;
                self.index.begin_resync(kind);
            }
            Event::Apply(object) => return self.index.apply(object),
            Event::Delete(key) => return self.index.delete(&key),
            Event::EndResync(kind, version) => {
                let list = self.lists.entry(kind).or_default();
                list.ended = list.begun;
                return self.index.end_resync(kind, version);
            }
            Event::Seen(kind, version) => self.index.seen(kind, version),
            Event::Heard(_) => {}
            Event::Problems(mut problems) => {
                problems.truncate(MAX_PROBLEMS);
                self.problems = problems;
            }
        }
        BTreeSet::new()
    }

    fn compute(&mut self, keys: impl IntoIterator<Item = ResourceKey>) -> Vec<Change> {
        let one = |key: ResourceKey| match self.index.compute_and_note(&key) {
            None => Some((key, None)),
            Some(resource) => self.within_bounds(&key, encode_resource(&resource)).map(|encoded| (key, Some(encoded))),
        };
        keys.into_iter().filter_map(one).collect()
    }

    /// A resource too large to be sent stays as it was.
    fn within_bounds(&self, key: &ResourceKey, encoded: Encoded) -> Option<Encoded> {
        if encoded.bytes.len() <= MAX_RESOURCE_BYTES {
            return Some(encoded);
        }
        self.metrics.resources_oversized.inc();
        warn!(%key, bytes = encoded.bytes.len(), "too large to be sent, so proxies keep what they have; narrow its selector");
        None
    }

    fn report(&mut self) {
        for kind in Kind::ALL {
            let count = self.index.len(kind).try_into().unwrap_or(i64::MAX);
            self.metrics.objects.with_label_values(&[kind.as_str()]).set(count);
            let left_out = self.index.left_out(kind).try_into().unwrap_or(i64::MAX);
            self.metrics.object_faults.with_label_values(&[kind.as_str()]).set(left_out);
        }
        for condition in self.index.take_new_conditions() {
            self.metrics.objects_rejected.with_label_values(&[condition.object.kind.as_str()]).inc();
            warn!("{condition}");
        }
    }
}

#[cfg(test)]
mod tests {
    use sheave_index::{Object, Strings};

    use super::*;
    use crate::source::Feed;

    #[tokio::test]
    async fn nothing_is_published_before_every_kind_was_listed() {
        let metrics = Arc::new(Metrics::new());
        let publisher = Arc::new(Publisher::new(metrics.clone()));
        let (feed, batches, _) = Feed::new(metrics.clone());
        let (ask, questions) = mpsc::channel(1);
        let engine = Engine::new("id".into(), None, publisher.clone(), metrics);
        let task = tokio::spawn(engine.run(batches, questions));
        let mut views = publisher.watch_views();
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert!(!publisher.is_ready());
            views.borrow_and_update();
            feed.listed(vec![Event::BeginResync(kind), Event::EndResync(kind, 7)]).await.unwrap();
            views.changed().await.unwrap();
            assert_eq!(publisher.is_ready(), at + 1 == Kind::ALL.len());
        }
        let standing = publisher.standing();
        assert_eq!((&*standing.view.source, standing.view.versions["Pod"]), ("id", 7));
        assert_eq!(standing.lists[&Kind::Pod], Lists { begun: 1, ended: 1 });

        feed.changed(vec![Event::Problems(vec!["web.yaml: no YAML; mend it".into()])]).await.unwrap();
        views.borrow_and_update();
        let (question, answer) = oneshot::channel();
        // The batch goes first: the loop prefers batches.
        ask.send(question).await.unwrap();
        assert_eq!(answer.await.unwrap().problems.len(), 1);
        drop(feed);
        task.await.unwrap();
    }

    fn pod(namespace: &str, name: &str, over: serde_json::Value) -> Object {
        let mut written = serde_json::json!({
            "metadata": {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/name": "sheave-proxy"}},
            "spec": {"nodeName": name, "containers": []}
        });
        written["status"] = over;
        sheave_index::facts::from_pod(&serde_json::from_value(written).unwrap(), &mut Strings::default()).unwrap()
    }

    #[test]
    fn nodes_without_a_proxys_pod_count_only_where_there_is_no_such_pod() {
        let metrics = Arc::new(Metrics::new());
        let publisher = Arc::new(Publisher::new(metrics.clone()));
        let mut engine = Engine::new("id".into(), Some("home".into()), publisher.clone(), metrics);
        let mut take = |events| engine.take_in(&mut vec![Batch { events, observed_unix_nanos: 0 }]);
        let node = |name: &str| {
            let written = serde_json::json!({"metadata": {"name": name}});
            sheave_index::facts::from_node(&serde_json::from_value(written).unwrap(), &mut Strings::default()).unwrap()
        };
        Kind::ALL.into_iter().for_each(|kind| take(vec![Event::BeginResync(kind), Event::EndResync(kind, 1)]));
        take(vec![Event::Apply(node("fargate")), Event::Apply(node("n1"))]);
        let status = serde_json::Value::Null;
        take(vec![Event::Apply(pod("elsewhere", "n2", status.clone()))]);
        assert_eq!(publisher.nodes(), ["fargate", "n1"]);
        take(vec![Event::Apply(pod("home", "n1", status.clone())), Event::Apply(pod("home", "gone", status))]);
        assert_eq!(publisher.nodes(), ["n1"]);
        take(vec![Event::BeginResync(Kind::Pod), Event::EndResync(Kind::Pod, 2)]);
        assert_eq!(publisher.nodes(), ["fargate", "n1"]);
    }

    #[test]
    fn what_is_left_out_is_shown_for_as_long_as_it_is() {
        let metrics = Arc::new(Metrics::new());
        let mut engine = Engine::new("id".into(), None, Arc::new(Publisher::new(metrics.clone())), metrics.clone());
        let mut take = |event| engine.take_in(&mut vec![Batch { events: vec![event], observed_unix_nanos: 0 }]);
        let faults = || metrics.object_faults.with_label_values(&["Pod"]).get();
        take(Event::Apply(pod("ns", "a", serde_json::json!({"podIPs": [{"ip": "x"}, {"ip": "y"}]}))));
        assert_eq!((faults(), metrics.objects_rejected.with_label_values(&["Pod"]).get()), (2, 2));
        take(Event::Delete(ObjectKey::new(Kind::Pod, "ns", "a")));
        assert_eq!((faults(), metrics.objects_rejected.with_label_values(&["Pod"]).get()), (0, 2));
    }

    #[test]
    fn the_view_is_as_old_as_its_oldest_kind() {
        let metrics = Arc::new(Metrics::new());
        let publisher = Arc::new(Publisher::new(metrics.clone()));
        let mut engine = Engine::new("id".into(), None, publisher.clone(), metrics);
        let mut take = |event| engine.take_in(&mut vec![Batch { events: vec![event], observed_unix_nanos: 0 }]);
        let age = || publisher.read(|_, _, age| age);
        let pause = Duration::from_millis(30);
        std::thread::sleep(pause);
        take(Event::Heard(None));
        assert!(age() < pause, "everything was heard of");
        std::thread::sleep(pause);
        take(Event::Heard(Some(Kind::Pod)));
        assert!(age() >= pause, "the other kinds may stand still");
        Kind::ALL.into_iter().for_each(|kind| take(Event::BeginResync(kind)));
        assert!(age() >= pause, "a question is no answer");
        Kind::ALL.into_iter().for_each(|kind| take(Event::EndResync(kind, 1)));
        assert!(age() < pause);
    }
}
