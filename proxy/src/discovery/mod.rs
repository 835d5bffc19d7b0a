//! The client of the controller's stream: finds a replica, says what this node holds, takes what is new into the store and
//! acknowledges it once the data paths have it.
//!
//! Replicas and the CAs that sign for them are found in several places at once (`book`), none of which has to be there.
//! Losing the controller stops nothing: the store keeps its last snapshot, and this task looks for a replica for ever.

mod acks;
mod book;
mod dial;
mod directory;
mod questions;
mod refuse;
mod remember;
mod rotation;
mod stream;
#[cfg(test)]
mod tests;

#[cfg(test)]
mod token_tests;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::Endpoint;
use crate::metrics::Metrics;
use crate::status::{Source, Status};
use crate::store::StoreHandle;
use crate::supervise::{Shutdown, Stop};
pub(crate) use book::{Book, Sources};
pub(crate) use dial::Proof;
pub(crate) use directory::MAX_CONTROLLERS;
pub(crate) use questions::Answerer;
use rotation::{Rotation, Turn};
use stream::{End, Stream};

/// What the task needs.
#[derive(Clone)]
pub(crate) struct Client {
    /// This node's name, as its certificate or token says it.
    pub(crate) node: String,
    /// Replicas, in the order of preference.
    pub(crate) book: Book,
    /// How this node proves itself.
    pub(crate) proof: Proof,
    /// The program ends when nothing is served and no replica was known for so long, or no CA.
    pub(crate) patience: Option<Duration>,
    pub(crate) store: StoreHandle,
    /// The revision that every data path has.
    pub(crate) programmed: watch::Receiver<u64>,
    /// Answers operators.
    pub(crate) answerer: Answerer,
    pub(crate) metrics: Metrics,
    pub(crate) status: Status,
    pub(crate) shutdown: Shutdown,
}

/// At most so long between two looks for a replica's address while none is known.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Client {
    /// Keeps a stream to some replica until everything stops.
    pub(crate) async fn run(self) {
        let mut rounds = Rounds::new();
        while !self.shutdown.is_stopped() {
            let (endpoints, last_resort) = self.book.endpoints();
            let known = self.knows_somebody(&endpoints, last_resort);
            if known {
                rounds.nobody_since = None;
            } else if self.waited_in_vain(&mut rounds) {
                return;
            }
            if endpoints.is_empty() {
                self.pause(LOOK_AGAIN).await;
                continue;
            }
            rounds.follow(endpoints, last_resort);
            let turn = rounds.rotation.next();
            self.pause(if known { turn.pause } else { turn.pause.min(LOOK_AGAIN) }).await;
            if self.shutdown.is_stopped() {
                return;
            }
            if !std::mem::take(&mut rounds.first) {
                self.metrics.stream_reconnects.inc();
            }
            let endpoint = &rounds.endpoints[turn.index];
            let end = tokio::select! {
                end = self.one_stream(endpoint, turn) => end,
                _ = self.shutdown.stopped() => return,
            };
            rounds.ended(turn.index, end);
        }
    }

    /// Whether a replica is known that can be dialled. The last resort is none: nobody may serve it yet. And who takes tokens
    /// is trusted only by a CA.
    fn knows_somebody(&self, endpoints: &[Endpoint], last_resort: bool) -> bool {
        let replicas = &endpoints[..endpoints.len() - usize::from(last_resort)];
        let trusted = !matches!(self.proof, Proof::Token(_)) || !self.book.anchors().is_empty();
        replicas.iter().any(|replica| trusted || matches!(replica, Endpoint::Unix(_)))
    }

    /// Takes note that nobody is known. Returns whether that lasts for too long with nothing to serve; everything then stops.
    fn waited_in_vain(&self, rounds: &mut Rounds) -> bool {
        let since = *rounds.nobody_since.get_or_insert_with(|| {
            tracing::warn!(
                "no replica of the controller, or no CA of theirs, is known yet; waiting for both to be in --discovery-dir"
            );
            Instant::now()
        });
        let idle = self.status.get().source == Source::Nothing;
        let in_vain = idle && self.patience.is_some_and(|patience| since.elapsed() >= patience);
        if in_vain {
            tracing::error!(
                "no replica of the controller became known; ending, because a kubelet renews a mounted ConfigMap at a \
                 start and otherwise only about once a minute"
            );
            self.shutdown.stop(Stop::Failed);
        }
        in_vain
    }

    /// Waits for so long, or until everything stops.
    async fn pause(&self, pause: Duration) {
        if !pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.shutdown.stopped() => {}
            }
        }
    }

    async fn one_stream(&self, endpoint: &Endpoint, turn: Turn) -> End {
        let authorization = match self.proof.authorization(endpoint).await {
            Ok(authorization) => authorization,
            Err(error) => return End::Unreachable(format!("{error:#}")),
        };
        let channel = match dial::dial(endpoint, &self.proof, self.book.anchors()).await {
            Ok(channel) => channel,
            Err(error) => return End::Unreachable(format!("{error:#}")),
        };
        let mut stream = Stream::new(self, endpoint.to_string(), turn);
        let end = stream.run(channel, authorization).await;
        self.metrics.stream_connected.set(0);
        self.metrics.acks_pending.set(0);
        self.status.update(|state| state.controller = None);
        // The next Hello must name all that was handed to the store, or a removal in between would never be told.
        stream.settle().await;
        end
    }
}

/// The endpoints as they are now, whose turn it is, and what was said about each.
struct Rounds {
    endpoints: Vec<Endpoint>,
    rotation: Rotation,
    first: bool,
    /// How each endpoint's last stream ended.
    told: HashMap<Endpoint, End>,
    /// Since when no replica is known.
    nobody_since: Option<Instant>,
}

impl Rounds {
    fn new() -> Self {
        let (endpoints, told) = (Vec::new(), HashMap::new());
        Self { endpoints, rotation: Rotation::new(1, false), first: true, told, nobody_since: None }
    }

    /// Begins anew where the endpoints are others than before.
    fn follow(&mut self, endpoints: Vec<Endpoint>, last_resort: bool) {
        if endpoints == self.endpoints {
            return;
        }
        let known: Vec<_> = endpoints.iter().map(Endpoint::to_string).collect();
        tracing::info!(controllers = known.join(", "), "replicas of the controller that are known");
        let before = std::mem::replace(&mut self.rotation, Rotation::new(endpoints.len(), last_resort));
        if !self.endpoints.is_empty() {
            self.rotation.go_on_after(&before);
        }
        self.told.retain(|endpoint, _| endpoints.contains(endpoint));
        self.endpoints = endpoints;
    }

    /// Takes note of a stream's end. A controller that stays away is told once, not at every try.
    fn ended(&mut self, index: usize, end: End) {
        self.rotation.ended(index, &end);
        if !matches!(end, End::Unreachable(_)) {
            self.nobody_since = None; // it has answered, at the last resort or elsewhere
        }
        let endpoint = &self.endpoints[index];
        if self.told.get(endpoint) == Some(&end) {
            tracing::debug!(controller = %endpoint, %end, "again no stream");
        } else {
            tracing::warn!(controller = %endpoint, %end, "no stream; what was received goes on being served");
            self.told.insert(endpoint.clone(), end);
        }
    }
}
