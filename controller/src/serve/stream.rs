//! One proxy's stream: Hello, the gate, the directory, the first series, then changes as they come; acks in return. Operators'
//! questions go between them.
//!
//! At most [`IN_FLIGHT`] updates are unacknowledged. Beyond that a proxy's queue is its place in the catalog's log, where
//! changes coalesce. One task owns all of a stream's state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use sheave_api::proto::from_controller::Message as Outgoing;
use sheave_api::proto::from_proxy::Message as Incoming;
use sheave_api::proto::{Ack, FromController, FromProxy, Hello, Update};
use sheave_api::{MAX_CHUNK_BYTES, hash_from_bytes, key_from_name, known_to_pair, view_from_proto, view_to_proto};
use sheave_model::{ContentHash, ResourceKey, View};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::auth::Peer;
use super::gate::{self, Pass};
use super::nodes::Entered;
use super::relay::Relay;
use super::{CATCH_UP, HELLO_TIMEOUT, Server};
use crate::publish::{Chunk, First, Lost};

/// Updates that may be unacknowledged.
pub(super) const IN_FLIGHT: usize = 8;

/// After this long without an update, one without content brings the newest view and its age.
const HEARTBEAT: Duration = Duration::from_secs(30);

type Sender = mpsc::Sender<Result<FromController, Status>>;

/// Serves one stream until either side ends it. The status goes to the proxy.
pub(super) async fn run(
    server: &Server,
    peer: &Peer,
    mut incoming: Streaming<FromProxy>,
    outgoing: &Sender,
) -> Result<(), Status> {
    let hello = tokio::time::timeout(HELLO_TIMEOUT, hello(&mut incoming)).await;
    let hello = hello.map_err(|_| server.refuse("hello", Status::deadline_exceeded("no Hello came in time")))?;
    let mut hello = hello.map_err(|status| server.refuse("hello", status))?;
    peer.may_be(&hello.node).map_err(|status| server.refuse_peer("identity", status))?;
    let (wanted, _) = view_from_proto(hello.view.take().unwrap_or_default());
    let mut stopping = server.stopping.clone();
    tokio::select! {
        passed = enter_gate(server, &hello.node, &wanted) => passed?,
        _ = stopping.wait_for(|&stop| stop) => return Err(ending()),
    }
    // Taken: it names every resource, and the rest of Hello lives as long as the stream.
    let known = known(&std::mem::take(&mut hello.known));
    let first = server.publisher.read(|catalog, _, _| catalog.shelf()).first(&hello.node, &known);
    drop(known);
    let (entered, relay) = server.nodes.enter(&hello.node, &hello.version, first.place);
    info!(node = hello.node, version = hello.version, "a proxy subscribed");
    let mut subscriber = Subscriber {
        server,
        node: &hello.node,
        place: first.place,
        first: Some(first),
        entered,
        relay,
        nonce: 0,
        in_flight: VecDeque::new(),
    };
    let result = subscriber.serve(&mut incoming, outgoing).await;
    info!(node = hello.node, status = result.as_ref().err().map(Status::message), "a proxy's stream ended");
    result
}

async fn hello(incoming: &mut Streaming<FromProxy>) -> Result<Hello, Status> {
    let first = incoming.message().await?.and_then(|message| message.message);
    match first {
        Some(Incoming::Hello(hello)) if !hello.node.is_empty() => Ok(hello),
        Some(Incoming::Hello(_)) => Err(Status::invalid_argument("Hello names no node")),
        Some(Incoming::Ack(_) | Incoming::Remembered(_) | Incoming::Answer(_)) | None => {
            Err(Status::invalid_argument("the first message is no Hello"))
        }
    }
}

async fn enter_gate(server: &Server, node: &str, wanted: &View) -> Result<(), Status> {
    match gate::pass(&server.publisher, &server.relist, wanted, CATCH_UP).await {
        Ok(Pass::Reached) => Ok(()),
        Ok(Pass::OtherSource) => {
            warn!(node, held = wanted.source, "the proxy holds another source's state; it gets this one's");
            Ok(())
        }
        Ok(Pass::SourceWentBack) => {
            warn!(
                node,
                "the proxy holds newer state than the source itself has now (a restored backup?); it gets what is there"
            );
            Ok(())
        }
        Err(lags) => Err(server.refuse("lags", Status::unavailable(lags.to_string()))),
    }
}

/// What Hello says the proxy holds. An entry that can't be read is sent again.
fn known(entries: &[sheave_api::proto::Known]) -> BTreeMap<ResourceKey, ContentHash> {
    entries.iter().filter_map(|entry| known_to_pair(entry).ok()).collect()
}

fn ending() -> Status {
    Status::unavailable("this replica is ending")
}

struct Subscriber<'a> {
    server: &'a Server,
    node: &'a str,
    /// Up to where the catalog's log has been sent.
    place: u64,
    /// The first series, while it lasts.
    first: Option<First>,
    entered: Entered,
    relay: Relay,
    nonce: u64,
    /// Nonces of unacknowledged updates, and the place each ended at; 0 before the end of the first series.
    in_flight: VecDeque<(u64, u64)>,
}

impl Subscriber<'_> {
    async fn serve(&mut self, incoming: &mut Streaming<FromProxy>, outgoing: &Sender) -> Result<(), Status> {
        let mut changes = self.server.publisher.watch_changes();
        let mut stopping = self.server.stopping.clone();
        let mut directory = self.server.directory.clone();
        let mut news = Some(directory.borrow_and_update().clone());
        let mut more = true;
        let mut asked = None;
        let mut heartbeat = Instant::now() + HEARTBEAT;
        loop {
            let may_send = more && self.in_flight.len() < IN_FLIGHT;
            let may_ask = asked.is_none() && self.relay.may_ask();
            tokio::select! {
                biased;
                _ = stopping.wait_for(|&stop| stop) => return Err(ending()),
                message = incoming.message() => match message? {
                    Some(FromProxy { message: Some(Incoming::Ack(ack)) }) => self.acknowledged(&ack)?,
                    Some(FromProxy { message: Some(Incoming::Remembered(remembered)) }) => {
                        let hash = hash_from_bytes(&remembered.ca_hash);
                        let hash = hash.map_err(|error| Status::invalid_argument(format!("Remembered: {error}")))?;
                        self.entered.stream.trusts(hash);
                    }
                    Some(FromProxy { message: Some(Incoming::Answer(answer)) }) => self.relay.answered(answer),
                    Some(_) => return Err(Status::invalid_argument("only Ack, Remembered and Answer may follow Hello")),
                    None => return Ok(()),
                },
                // An error means that its task is gone for good, with the program.
                Ok(()) = directory.changed() => news = Some(directory.borrow_and_update().clone()),
                permit = outgoing.reserve(), if news.is_some() || asked.is_some() || may_send => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(news) = news.take() {
                        if news.is_complete() {
                            permit.send(Ok(FromController { message: Some(Outgoing::Directory(news.to_proto())) }));
                        }
                        continue;
                    }
                    if let Some(question) = asked.take() {
                        permit.send(Ok(FromController { message: Some(Outgoing::Question(self.relay.ask(question))) }));
                        continue;
                    }
                    changes.borrow_and_update();
                    match self.next_update()? {
                        Some((update, complete)) => {
                            more = !complete;
                            heartbeat = Instant::now() + HEARTBEAT;
                            permit.send(Ok(message(update)));
                        }
                        None => more = false,
                    }
                }
                question = self.relay.next(), if may_ask => asked = Some(question),
                changed = changes.changed(), if !more => match changed {
                    Ok(()) => more = true,
                    Err(_) => return Err(ending()),
                },
                () = sleep_until(heartbeat) => {
                    heartbeat = Instant::now() + HEARTBEAT;
                    if self.in_flight.is_empty() && let Ok(permit) = outgoing.try_reserve() {
                        permit.send(Ok(message(self.heartbeat())));
                    }
                }
            }
        }
    }

    /// The next update, and whether it brings the proxy up to date.
    fn next_update(&mut self) -> Result<Option<(Update, bool)>, Status> {
        let Self { server, node, place, first, .. } = self;
        let (chunk, view) = server.publisher.read(|catalog, view, age| {
            let chunk = match first {
                Some(first) => Ok(catalog.next_of_first(first, MAX_CHUNK_BYTES)),
                None => catalog.next(node, place, MAX_CHUNK_BYTES),
            };
            (chunk, view_to_proto(view, age))
        });
        let chunk =
            chunk.map_err(|lost: Lost| server.refuse("lost", Status::aborted(format!("{lost}; subscribe again"))))?;
        self.entered.stream.sent.store(self.place, Ordering::Relaxed);
        let ends_first = self.first.is_some() && chunk.complete;
        if chunk.is_empty() && self.first.is_none() {
            // What was passed over concerns other nodes, so there is nothing to wait for.
            match self.in_flight.back_mut() {
                Some((_, place)) => *place = self.place,
                None => self.entered.stream.acked.store(self.place, Ordering::Relaxed),
            }
            return Ok(None);
        }
        if ends_first {
            self.first = None;
        }
        self.note_sent_again(&chunk);
        // Changes since the first series began lie behind it, so its end is not yet the end.
        let complete = chunk.complete && !ends_first;
        let update = Update {
            nonce: self.next_nonce(),
            upserts: chunk.upserts,
            removals: chunk.removals,
            last_of_initial: ends_first,
            view: Some(view),
            observed_unix_nanos: chunk.observed_unix_nanos,
        };
        Ok(Some((update, complete)))
    }

    fn heartbeat(&mut self) -> Update {
        let view = self.server.publisher.read(|_, view, age| view_to_proto(view, age));
        Update { nonce: self.next_nonce(), view: Some(view), ..Update::default() }
    }

    fn next_nonce(&mut self) -> u64 {
        self.nonce += 1;
        // Half of a first series is no state that could be said to be programmed.
        let place = if self.first.is_some() { 0 } else { self.place };
        self.in_flight.push_back((self.nonce, place));
        self.nonce
    }

    fn note_sent_again(&self, chunk: &Chunk) {
        if self.entered.stream.has_nacks() {
            let names = chunk.upserts.iter().filter_map(|upsert| upsert.name.as_ref()).chain(&chunk.removals);
            let keys: Vec<_> = names.map(|name| key_from_name(name).ok()).collect();
            self.entered.stream.sent_again(keys.iter().map(Option::as_ref));
        }
    }

    /// Acks come in the order of the updates; one acknowledges whatever was sent before it.
    fn acknowledged(&mut self, ack: &Ack) -> Result<(), Status> {
        if !self.in_flight.iter().any(|&(nonce, _)| nonce == ack.nonce) {
            return Err(Status::invalid_argument(format!("nonce {} is not waiting for an Ack", ack.nonce)));
        }
        while let Some((nonce, place)) = self.in_flight.pop_front() {
            self.server.metrics.acks.inc();
            self.entered.stream.acked.store(place, Ordering::Relaxed);
            if nonce == ack.nonce {
                break;
            }
        }
        for nack in &ack.nacks {
            self.server.metrics.nacks.inc();
            let key = nack.name.as_ref().and_then(|name| key_from_name(name).ok());
            let shown = key.as_ref().map_or_else(|| "a resource without a name".to_owned(), ToString::to_string);
            warn!(
                node = self.node,
                resource = shown,
                reason = nack.reason,
                "a proxy refused a resource and keeps the old one"
            );
            if let Some(key) = key {
                self.entered.stream.refused(key, &nack.reason);
            }
        }
        debug!(node = self.node, nonce = ack.nonce, "acknowledged");
        Ok(())
    }
}

fn message(update: Update) -> FromController {
    FromController { message: Some(Outgoing::Update(update)) }
}
