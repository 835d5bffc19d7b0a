//! Who is connected, how far each has come, and what it refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use sheave_api::proto;
use sheave_model::{ContentHash, ResourceKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::MAX_SUBSCRIBERS;
use super::relay::{Relay, Relayed};
use crate::metrics::Metrics;

/// Refusals that are kept per node; more are counted only.
const MAX_NACKS: usize = 256;

/// Longest version text and reason that is kept, in bytes.
const MAX_TEXT: usize = 200;

/// Refusals are logged this far apart: whoever is refused comes again, and others may come with them.
const COMPLAINTS: Duration = Duration::from_secs(1);

/// One stream's state, for the admin page and the depth of queues.
#[derive(Debug)]
pub(crate) struct Stream {
    node: String,
    version: String,
    since: Instant,
    /// Its place in the catalog's log.
    pub(super) sent: AtomicU64,
    /// The place that the newest acknowledged update ended at.
    pub(super) acked: AtomicU64,
    nacks: Mutex<BTreeMap<ResourceKey, String>>,
    /// The CAs that the node says it trusts.
    trusted: Mutex<Option<ContentHash>>,
    questions: mpsc::Sender<Relayed>,
}

impl Stream {
    fn to_proto(&self) -> proto::NodeStream {
        let refused = self.nacks().iter().map(|(key, reason)| refused(key, reason)).collect();
        proto::NodeStream {
            node: self.node.clone(),
            version: self.version.clone(),
            connected_seconds: self.since.elapsed().as_secs(),
            sent: self.sent.load(Ordering::Relaxed),
            programmed: self.acked.load(Ordering::Relaxed),
            refused,
        }
    }

    /// Notes which CAs the node trusts.
    pub(crate) fn trusts(&self, ca_hash: ContentHash) {
        *self.trusted.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca_hash);
    }

    fn nacks(&self) -> MutexGuard<'_, BTreeMap<ResourceKey, String>> {
        self.nacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the node refused a resource.
    pub(super) fn refused(&self, key: ResourceKey, reason: &str) {
        let mut nacks = self.nacks();
        if nacks.len() < MAX_NACKS || nacks.contains_key(&key) {
            nacks.insert(key, short(reason));
        }
    }

    /// Notes that another version of resources is on its way, so what was refused no longer says anything.
    pub(super) fn sent_again<'a>(&self, mut keys: impl Iterator<Item = Option<&'a ResourceKey>>) {
        let mut nacks = self.nacks();
        while let (false, Some(key)) = (nacks.is_empty(), keys.next()) {
            if let Some(key) = key {
                nacks.remove(key);
            }
        }
    }

    pub(super) fn has_nacks(&self) -> bool {
        !self.nacks().is_empty()
    }
}

/// Every stream.
#[derive(Debug)]
pub(crate) struct Nodes {
    streams: Mutex<BTreeMap<u64, Arc<Stream>>>,
    next: AtomicU64,
    /// For streams, those that are not on the list yet among them.
    places: Arc<Semaphore>,
    /// When a refusal was last logged.
    complained: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

impl Nodes {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self::with_places(metrics, MAX_SUBSCRIBERS)
    }

    /// With room for so many streams.
    pub(super) fn with_places(metrics: Arc<Metrics>, places: usize) -> Self {
        let places = Arc::new(Semaphore::new(places));
        let (streams, next, complained) = (Mutex::default(), AtomicU64::new(0), Mutex::default());
        Self { streams, next, places, complained, metrics }
    }

    /// A place for one more stream, until it is dropped.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a refusal may be logged now, and then notes that it was.
    pub(super) fn may_complain(&self) -> bool {
        let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= COMPLAINTS);
        if may {
            *last = Some(Instant::now());
        }
        may
    }

    /// Adds a stream until the returned guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, node: &str, version: &str, place: u64) -> (Entered, Relay) {
        let (questions, relay) = Relay::new();
        let stream = Arc::new(Stream {
            node: node.to_owned(),
            version: short(version),
            since: Instant::now(),
            sent: AtomicU64::new(place),
            acked: AtomicU64::new(0),
            nacks: Mutex::default(),
            trusted: Mutex::default(),
            questions,
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, stream.clone());
        self.metrics.subscribers.inc();
        (Entered { id, nodes: self.clone(), stream }, relay)
    }

    /// One stream for each node: the newest, where a node has come again before its last stream was found dead.
    fn newest(&self) -> BTreeMap<String, Arc<Stream>> {
        self.lock().values().map(|stream| (stream.node.clone(), stream.clone())).collect()
    }

    /// Where questions to a node go, while it has a stream.
    pub(super) fn questions(&self, node: &str) -> Option<mpsc::Sender<Relayed>> {
        let streams = self.lock();
        streams.values().rfind(|stream| stream.node == node).map(|stream| stream.questions.clone())
    }

    /// All of them, for operators.
    pub(super) fn to_proto(&self) -> Vec<proto::NodeStream> {
        self.newest().values().map(|stream| stream.to_proto()).collect()
    }

    /// How far each node has come, and who refused what.
    pub(super) fn progress(&self) -> Progress {
        let mut progress = Progress::default();
        for (node, stream) in self.newest() {
            progress.places.push(stream.acked.load(Ordering::Relaxed));
            for key in stream.nacks().keys() {
                progress.refused.entry(key.clone()).or_default().push(node.clone());
            }
        }
        progress.places.sort_unstable();
        progress
    }

    /// The place of the slowest stream.
    pub(crate) fn slowest(&self) -> Option<u64> {
        self.lock().values().map(|stream| stream.sent.load(Ordering::Relaxed)).min()
    }

    /// The nodes that have said that they trust these CAs.
    pub(crate) fn trusting(&self, ca_hash: ContentHash) -> Vec<String> {
        let trusts =
            |stream: &Arc<Stream>| *stream.trusted.lock().unwrap_or_else(PoisonError::into_inner) == Some(ca_hash);
        self.lock().values().filter(|stream| trusts(stream)).map(|stream| stream.node.clone()).collect()
    }

    /// All of them, for the admin page.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let one = |stream: &Arc<Stream>| {
            let nacks: BTreeMap<String, String> =
                stream.nacks().iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
            json!({
                "node": stream.node,
                "version": stream.version,
                "connected_seconds": stream.since.elapsed().as_secs(),
                "revision_sent": stream.sent.load(Ordering::Relaxed),
                "revision_acked": stream.acked.load(Ordering::Relaxed),
                "refused": nacks,
            })
        };
        self.lock().values().map(one).collect()
    }
}

/// What all nodes have, at one moment.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Sorted.
    places: Vec<u64>,
    refused: BTreeMap<ResourceKey, Vec<String>>,
}

impl Progress {
    /// On how many nodes a resource is programmed that changed last at `revision`, and which refuse it.
    pub(super) fn of(&self, key: &ResourceKey, revision: u64) -> (usize, &[String]) {
        let refused = self.refused.get(key).map(Vec::as_slice).unwrap_or_default();
        let there = self.places.len() - self.places.partition_point(|&place| place < revision);
        (there.saturating_sub(refused.len()), refused)
    }
}

fn refused(key: &ResourceKey, reason: &str) -> proto::Refused {
    proto::Refused { resource: key.to_string(), reason: reason.to_owned() }
}

/// A stream that is on the list.
#[derive(Debug)]
pub(crate) struct Entered {
    id: u64,
    nodes: Arc<Nodes>,
    pub(crate) stream: Arc<Stream>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.nodes.lock().remove(&self.id);
        self.nodes.metrics.subscribers.dec();
    }
}

/// The beginning of a text that somebody else chose.
fn short(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_listed_while_it_lives_and_its_refusals_are_bounded() {
        let metrics = Arc::new(Metrics::new());
        let nodes = Arc::new(Nodes::new(metrics.clone()));
        let (entered, _relay) = nodes.enter("a", &"v".repeat(1000), 5);
        let key = |number: usize| ResourceKey::Node(number.to_string().into());
        (0..1000).for_each(|number| entered.stream.refused(key(number), "no"));
        assert_eq!(entered.stream.nacks().len(), MAX_NACKS);
        entered.stream.sent_again([Some(&key(3)), None].into_iter());
        assert!(!entered.stream.nacks().contains_key(&key(3)));
        assert_eq!((nodes.slowest(), metrics.subscribers.get()), (Some(5), 1));
        assert_eq!(nodes.to_json()[0]["version"].as_str().map(str::len), Some(MAX_TEXT));
        drop(entered);
        assert_eq!((nodes.slowest(), metrics.subscribers.get()), (None, 0));
    }

    #[test]
    fn a_resource_is_programmed_where_its_revision_is_reached_and_nobody_refused_it() {
        let nodes = Arc::new(Nodes::new(Arc::new(Metrics::new())));
        let streams: Vec<_> = ["a", "b", "b", "c"].into_iter().map(|node| nodes.enter(node, "1", 0)).collect();
        for ((entered, _), place) in streams.iter().zip([5, 9, 7, 3]) {
            entered.stream.acked.store(place, Ordering::Relaxed);
        }
        let key = ResourceKey::Cluster;
        streams[0].0.stream.refused(key.clone(), "no");
        let progress = nodes.progress();
        assert_eq!(progress.of(&key, 5), (1, ["a".to_owned()].as_slice()));
        assert_eq!(progress.of(&ResourceKey::Node("a".into()), 3).0, 3, "b counts once");
        assert_eq!(progress.of(&ResourceKey::Node("a".into()), 8).0, 0, "b's older stream says nothing");
        assert_eq!(nodes.to_proto().len(), 3);
        assert!(nodes.questions("c").is_some() && nodes.questions("d").is_none());
    }
}
