//! Where objects come from: an API server (`kube`) or a folder of YAML (`dir`), behind one trait.
//!
//! A source turns every object into facts at once and sends batches of [`Event`]s; the index task applies them. What it sees
//! together (one write of a file, one page of a list) is one batch and reaches the proxies together. Nothing here knows of
//! Services' endpoints, hashes or proxies.

pub(crate) mod dir;
pub(crate) mod kube;
mod relist;

use std::future::Future;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sheave_index::{Kind, Object, ObjectKey};
use tokio::sync::mpsc;

pub(crate) use self::relist::Relist;
use crate::metrics::Metrics;

/// Batches that may wait for the index task. A source that is faster waits.
pub(crate) const QUEUE: usize = 256;

/// Something that happened at a source. For each kind: `BeginResync`, `Apply` for everything there is, `EndResync`; then
/// `Apply`, `Delete` and `Seen` as things change, and the whole again after a relist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A list of this kind starts *now*: it must be sent before the list is requested, because a proxy's wish to be served
    /// nothing older than it holds is answered by lists that began after the wish.
    BeginResync(Kind),
    /// An object is new or has changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// The list is complete; what it did not name is gone. With the list's resourceVersion.
    EndResync(Kind, u64),
    /// A version was reached without a change of an object that we hold: a bookmark, or the version of a deletion.
    Seen(Kind, u64),
    /// The source was heard from about this kind, or (`None`) about every one; nothing has changed.
    Heard(Option<Kind>),
    /// Everything that is wrong at the source itself and belongs to no object (a file that can't be read, a document of an
    /// unknown kind), replacing what was said before: one line each, with place and remedy. Shown in /debug/services; the
    /// source logs and counts them.
    Problems(Vec<String>),
}

/// Events that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// In order.
    pub(crate) events: Vec<Event>,
    /// When the source saw them, nanoseconds since 1970; 0 for a list's pages, which say nothing about latency.
    pub(crate) observed_unix_nanos: u64,
}

/// A source's way out: batches to the index, counters, and the wishes for another list.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    batches: mpsc::Sender<Batch>,
    relist: Arc<Relist>,
    /// For `watch_errors` and `objects_rejected` by kind.
    pub(crate) metrics: Arc<Metrics>,
}

/// The index task has ended, so there is nobody to tell.
#[derive(Debug, thiserror::Error)]
#[error("the index task has ended")]
pub(crate) struct Closed;

impl Feed {
    pub(crate) fn new(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Batch>, Arc<Relist>) {
        let (batches, receiver) = mpsc::channel(QUEUE);
        let relist = Arc::new(Relist::default());
        (Self { batches, relist: relist.clone(), metrics }, receiver, relist)
    }

    /// Sends changes that were seen now.
    pub(crate) async fn changed(&self, events: Vec<Event>) -> Result<(), Closed> {
        self.send(Batch { events, observed_unix_nanos: unix_nanos() }).await
    }

    /// Sends parts of a list, whose objects may be of any age.
    pub(crate) async fn listed(&self, events: Vec<Event>) -> Result<(), Closed> {
        self.send(Batch { events, observed_unix_nanos: 0 }).await
    }

    /// Sends a batch as it is; waits while the queue is full.
    pub(crate) async fn send(&self, batch: Batch) -> Result<(), Closed> {
        let room = self.batches.reserve().await.map_err(|_| Closed)?;
        // No await lies between the two, so a list is counted exactly if the index task learns of it.
        self.relist.note(&batch.events);
        room.send(batch);
        Ok(())
    }

    /// Waits until somebody wants this kind to be listed once more, and it may be.
    pub(crate) async fn relist_wanted(&self, kind: Kind) {
        self.relist.wanted(kind).await;
    }
}

/// A source of objects.
pub(crate) trait Source: Send + 'static {
    /// The id of what is watched: resourceVersions of two ids say nothing about each other. Tried again after an error.
    fn identify(&mut self) -> impl Future<Output = anyhow::Result<String>> + Send;

    /// Watches for ever. Errors that time may mend are counted, logged and retried inside; it returns only when the index task
    /// has ended or when nothing can be mended.
    fn run(self, feed: Feed) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Now, in nanoseconds since 1970.
pub(crate) fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
