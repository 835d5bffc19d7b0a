//! List, watch from the list's version, and list again when the history is gone (410), when the server went back, when a proxy
//! holds something newer than what was seen, or when the watch can't go on.

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Client, Error};
use sheave_index::{ObjectKey, Strings};
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::kinds::Watched;
use crate::source::{Closed, Event, Feed};

/// Objects per page: a page of Pods is about 2 MiB while it is decoded.
const PAGE: u32 = 250;

/// Watch events that are there already are sent together, up to this many.
const TOGETHER: usize = 64;

/// The server ends a watch after this many seconds, and it is opened again where it was.
const WATCH_SECONDS: u32 = 290;

/// A watch that lasts this long was a good one; after a shorter one the next waits a little.
const STEADY: Duration = Duration::from_secs(1);

/// Every so many failures in a row are logged, so that an absent API server doesn't fill the log.
const LOG_EVERY: u32 = 10;

/// A kind that the API server doesn't have is looked for this often.
const LOOK_FOR: Duration = Duration::from_secs(60);

/// What came of a list.
enum Listed {
    /// Complete, at this version.
    At(String),
    /// The API server doesn't have the kind: there is nothing of it.
    Absent,
    Failed(Error),
}

/// Why a kind is listed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// The version to go on from is no longer in the server's history.
    Gone,
    /// The server is at an older version than what is held: it was restored from a backup.
    WentBack,
    /// Somebody wants to know that nothing newer exists.
    Wanted,
}

/// How a watch ended.
enum Ended {
    /// The server closed it, as it does after a while.
    Closed,
    /// It brought something older than what is held, or the server has nothing as new.
    WentBack,
    Failed(Error),
}

/// Watches one kind until the index task has ended.
pub(super) async fn run<K: Watched>(client: Client, feed: Feed) -> Closed {
    let (strings, backoff) = (Strings::default(), Backoff::default());
    let mut kind = Watch { api: Api::<K>::all(client), feed, strings, backoff, absent: false };
    loop {
        let listed = match kind.list().await {
            Ok(Listed::At(version)) => version,
            Ok(Listed::Absent) => {
                kind.look_for().await;
                continue;
            }
            Ok(Listed::Failed(error)) => {
                kind.failed("list", &error).await;
                continue;
            }
            Err(closed) => return closed,
        };
        kind.absent = false;
        match kind.follow(listed).await {
            Ok(again) => {
                kind.feed.metrics.relists.with_label_values(&[K::KIND.as_str()]).inc();
                info!(kind = %K::KIND, reason = ?again, "listing again");
            }
            Err(closed) => return closed,
        }
    }
}

struct Watch<K> {
    api: Api<K>,
    feed: Feed,
    strings: Strings,
    backoff: Backoff,
    /// The API server doesn't have the kind, and that has been said.
    absent: bool,
}

impl<K: Watched> Watch<K> {
    /// Lists everything, page by page, from the newest state (no resourceVersion: a consistent read).
    async fn list(&mut self) -> Result<Listed, Closed> {
        self.feed.listed(vec![Event::BeginResync(K::KIND)]).await?;
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = match self.api.list(&params).await {
                Ok(page) => page,
                Err(error) if K::OPTIONAL && status(&error) == Some(404) => {
                    self.feed.listed(vec![Event::EndResync(K::KIND, 0)]).await?;
                    return Ok(Listed::Absent);
                }
                Err(error) => return Ok(Listed::Failed(error)),
            };
            let mut events: Vec<Event> = page.items.iter().filter_map(|object| self.apply(object)).collect();
            let version = page.metadata.resource_version.unwrap_or_default();
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                events.push(Event::EndResync(K::KIND, number(&version)));
                self.feed.listed(events).await?;
                return Ok(Listed::At(version));
            }
            self.feed.listed(events).await?;
        }
    }

    /// Says once that the API server doesn't have the kind, and waits before the next look.
    async fn look_for(&mut self) {
        if !std::mem::replace(&mut self.absent, true) {
            info!(kind = %K::KIND, "the API server doesn't have this kind; going on without it, looking again now and then");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_FOR) => {}
            () = self.feed.relist_wanted(K::KIND) => {}
        }
    }

    /// Watches from a version on, through reconnects, until a list is needed.
    async fn follow(&mut self, mut version: String) -> Result<Again, Closed> {
        let feed = self.feed.clone();
        let mut just_listed = true;
        loop {
            let (ended, lasted) = tokio::select! {
                watched = self.watch(&mut version, !std::mem::take(&mut just_listed)) => watched?,
                () = feed.relist_wanted(K::KIND) => return Ok(Again::Wanted),
            };
            if lasted >= STEADY {
                self.backoff.reset();
            }
            match ended {
                Ended::Closed if lasted >= STEADY => debug!(kind = %K::KIND, "the watch ended and is opened again"),
                Ended::Closed => self.backoff.wait().await,
                Ended::WentBack => {
                    // Whatever the server does, it is not listed without end.
                    self.backoff.wait().await;
                    return Ok(Again::WentBack);
                }
                Ended::Failed(error) if status(&error) == Some(410) => {
                    self.feed.metrics.watch_errors.with_label_values(&[K::KIND.as_str()]).inc();
                    // A server whose fresh list is gone at once would be listed without end.
                    if lasted < STEADY {
                        self.backoff.wait().await;
                    }
                    return Ok(Again::Gone);
                }
                Ended::Failed(error) if K::OPTIONAL && status(&error) == Some(404) => return Ok(Again::Gone),
                Ended::Failed(error) => self.failed("watch", &error).await,
            }
        }
    }

    /// One watch, and how long it was open. With `verify` the server is asked first what its newest version is: from a version
    /// that a restored one has yet to reach a watch can be opened, and brings nothing, not even an error. So it is the answer
    /// that counts as hearing from the server, and not the watch's opening.
    async fn watch(&mut self, version: &mut String, verify: bool) -> Result<(Ended, Duration), Closed> {
        if verify {
            match self.api.list_metadata(&ListParams::default().limit(1)).await {
                Ok(page) if is_older(page.metadata.resource_version.as_deref().unwrap_or_default(), version) => {
                    return Ok((Ended::WentBack, Duration::ZERO));
                }
                Ok(_) => self.feed.changed(vec![Event::Heard(Some(K::KIND))]).await?,
                Err(error) => return Ok((Ended::Failed(error), Duration::ZERO)),
            }
        }
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let stream = match self.api.watch(&params, version).await {
            Ok(stream) => stream,
            Err(error) => return Ok((Ended::Failed(error), Duration::ZERO)),
        };
        let since = Instant::now();
        let ended = self.take(std::pin::pin!(stream.ready_chunks(TOGETHER)), version).await?;
        Ok((ended, since.elapsed()))
    }

    /// Takes events until the watch ends. Every event moves `version` on only once it has been handed over.
    async fn take(
        &mut self,
        mut events: impl Stream<Item = Vec<Result<WatchEvent<K>, Error>>> + Unpin,
        version: &mut String,
    ) -> Result<Ended, Closed> {
        while let Some(together) = events.next().await {
            let mut batch = Vec::with_capacity(together.len());
            let mut newest = None;
            let mut ended = None;
            for event in together {
                match event {
                    Ok(WatchEvent::Error(status)) => ended = Some(Ended::Failed(Error::Api(status))),
                    Ok(event) if version_of(&event).is_some_and(|its| is_older(its, version)) => {
                        ended = Some(Ended::WentBack);
                    }
                    Ok(event) => newest = self.convert(event, &mut batch).or(newest),
                    Err(error) if is_unreadable(&error) => self.unreadable(&error),
                    Err(error) => ended = Some(Ended::Failed(error)),
                }
                if ended.is_some() {
                    break;
                }
            }
            if !batch.is_empty() {
                self.backoff.reset();
                self.feed.changed(batch).await?;
            }
            if let Some(newest) = newest {
                *version = newest;
            }
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
        Ok(Ended::Closed)
    }

    /// Adds what a watch event means to a batch, and returns the version it brings.
    fn convert(&mut self, event: WatchEvent<K>, batch: &mut Vec<Event>) -> Option<String> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                batch.extend(self.apply(&object));
                object.meta().resource_version.clone()
            }
            WatchEvent::Deleted(object) => {
                let meta = object.meta();
                let name = meta.name.as_deref().unwrap_or_default();
                let version = meta.resource_version.clone();
                batch.push(Event::Delete(ObjectKey::new(K::KIND, meta.namespace.as_deref().unwrap_or_default(), name)));
                batch.push(Event::Seen(K::KIND, number(version.as_deref().unwrap_or_default())));
                version
            }
            WatchEvent::Bookmark(mark) => {
                batch.push(Event::Seen(K::KIND, number(&mark.metadata.resource_version)));
                Some(mark.metadata.resource_version)
            }
            WatchEvent::Error(_) => None,
        }
    }

    fn apply(&mut self, object: &K) -> Option<Event> {
        match object.facts(&mut self.strings) {
            Ok(object) => Some(Event::Apply(object)),
            Err(error) => {
                self.feed.metrics.objects_rejected.with_label_values(&[K::KIND.as_str()]).inc();
                warn!("{error}");
                None
            }
        }
    }

    /// One object that isn't of its kind's form spares the others. What is known of it stays.
    fn unreadable(&self, error: &Error) {
        let error = error as &dyn std::error::Error;
        self.feed.metrics.objects_rejected.with_label_values(&[K::KIND.as_str()]).inc();
        warn!(kind = %K::KIND, error, "an event of the watch can't be read and is passed over; mend the object it is about");
    }

    /// Counts a failure, says so now and then, and waits before the next try.
    async fn failed(&mut self, doing: &'static str, error: &Error) {
        self.feed.metrics.watch_errors.with_label_values(&[K::KIND.as_str()]).inc();
        let tries = self.backoff.tries();
        if tries.is_multiple_of(LOG_EVERY) {
            let error = error as &dyn std::error::Error;
            warn!(kind = %K::KIND, doing, error, tries, "the API server can't be read; serving what is known, trying on");
        }
        self.backoff.wait().await;
    }
}

/// Whether a line of a watch is no event of the kind. The client then tries to read it as a Status, all fields of which are
/// optional, so that a whole event whose object can't be read becomes a Status that says nothing.
fn is_unreadable(error: &Error) -> bool {
    match error {
        Error::SerdeError(_) => true,
        Error::Api(status) => **status == Status::default(),
        _ => false,
    }
}

/// The HTTP status of an answer that is an error.
fn status(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// A resourceVersion as a number, which it is by KEP-5504; 0 where it isn't one.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

/// Whether a version is known to be older than what is held.
fn is_older(version: &str, held: &str) -> bool {
    (1..number(held)).contains(&number(version))
}

/// The version that a watch event brings.
fn version_of<K: Watched>(event: &WatchEvent<K>) -> Option<&str> {
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
            object.meta().resource_version.as_deref()
        }
        WatchEvent::Bookmark(mark) => Some(&mark.metadata.resource_version),
        WatchEvent::Error(_) => None,
    }
}
