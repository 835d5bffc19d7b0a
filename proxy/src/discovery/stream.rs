//! One stream, from Hello to its end.

use std::fmt;
use std::time::Duration;

use sheave_api::{Decoded, MAX_MESSAGE_BYTES, decode_update, hash_to_bytes, known, proto, view_to_proto};
use sheave_model::{ContentHash, ResourceKey, Snapshot, View};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::Client;
use super::acks::{Acks, Pending};
use super::dial::with_causes;
use super::questions::Questions;
use super::refuse::{FirstSeries, foreign_nodes, goes_back};
use super::rotation::Turn;
use crate::status::unix_nanos;
use crate::store::Change;

/// How long a replica may take from Hello to its first Update. It waits up to 10 s for its caches.
const FIRST_UPDATE: Duration = Duration::from_secs(20);
/// A controller that owes no answer says something every 30 s; three times as long means that it no longer works, though
/// its machine still answers for it.
pub(super) const SILENCE: Duration = Duration::from_secs(90);
/// Messages to the controller that may be queued.
const OUTBOUND: usize = 16;

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nobody answered.
    Unreachable(String),
    /// It ended before the first series was complete.
    BeforeServing(String),
    /// It ended after that.
    AfterServing(String),
    /// An Update was older than what this proxy has applied.
    BackInTime,
    /// The replica's view is this old, and there are others to try.
    Old(Duration),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "not reachable: {why}"),
            Self::BeforeServing(why) => write!(f, "it ended before all had come: {why}"),
            Self::AfterServing(why) => write!(f, "{why}"),
            Self::BackInTime => {
                f.write_str("its view is older than what this node has applied; trying the next replica")
            }
            Self::Old(age) => write!(f, "its view is {} s old; looking for a fresher replica", age.as_secs()),
        }
    }
}

/// The state of one stream.
pub(super) struct Stream<'a> {
    client: &'a Client,
    endpoint: String,
    turn: Turn,
    view: View,
    series: FirstSeries,
    acks: Acks,
    /// A directory that was learned and is to be acknowledged.
    learned: Option<ContentHash>,
    questions: Questions,
    /// A part of an answer to an operator, to be sent.
    part: Option<proto::Answer>,
}

impl<'a> Stream<'a> {
    /// A stream to `endpoint`, left where its view is older than this turn allows.
    pub(super) fn new(client: &'a Client, endpoint: String, turn: Turn) -> Self {
        let view = client.store.received.borrow().view.clone();
        let (series, acks) = (FirstSeries::default(), Acks::default());
        let questions = Questions::new(client.answerer.clone(), client.metrics.clone());
        Self { client, endpoint, turn, view, series, acks, learned: None, questions, part: None }
    }

    /// Waits until the store has taken in all that this stream brought.
    pub(super) async fn settle(&mut self) {
        self.acks.settle().await;
    }

    /// Runs it; `authorization` proves who this node is.
    pub(super) async fn run(&mut self, channel: Channel, authorization: Option<MetadataValue<Ascii>>) -> End {
        let (outbound, queue) = mpsc::channel(OUTBOUND);
        let hello = hello(&self.client.node, &self.client.store.received.borrow());
        if outbound.send(hello).await.is_err() {
            return self.end("its queue closed".to_owned());
        }
        let mut api = proto::discovery_client::DiscoveryClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut deadline = tokio::time::Instant::now() + FIRST_UPDATE;
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        if let Some(authorization) = authorization {
            request.metadata_mut().insert("authorization", authorization);
        }
        let opened = tokio::time::timeout_at(deadline, api.stream(request)).await;
        let mut inbound = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return self.end(status_text(&status)),
            Err(_) => return self.end("no answer to Hello".to_owned()),
        };
        let mut programmed = self.client.programmed.clone();
        let mut heard = false;
        loop {
            let ready = self.acks.ready(*programmed.borrow_and_update());
            tokio::select! {
                permit = outbound.reserve(), if ready || self.learned.is_some() || self.part.is_some() => match permit {
                    Ok(permit) => {
                        self.answer(permit, ready);
                        deadline = tokio::time::Instant::now() + SILENCE;
                    }
                    Err(_) => return self.end("it no longer takes messages".to_owned()),
                },
                part = self.questions.next(), if self.part.is_none() => self.part = Some(part),
                changed = programmed.changed(), if !ready => if changed.is_err() {
                    return self.end("the data paths have ended".to_owned());
                },
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        heard = true;
                        if let Some(end) = self.receive(message).await {
                            return end;
                        }
                        deadline = tokio::time::Instant::now() + SILENCE;
                    }
                    Ok(None) => return self.end("the controller closed it".to_owned()),
                    Err(status) => return self.end(status_text(&status)),
                },
                // While an answer is owed, the controller is silent as well.
                () = tokio::time::sleep_until(deadline), if self.acks.len() == 0 => {
                    let why = if heard { "nothing came for too long" } else { "no Update came" };
                    return self.end(why.to_owned());
                }
            }
        }
    }

    fn end(&self, why: String) -> End {
        if self.series.is_over() { End::AfterServing(why) } else { End::BeforeServing(why) }
    }

    /// Sends what is due: the word on a directory first, since that waits for nothing, and what operators asked for last.
    /// `ready` says that an acknowledgement is due.
    fn answer(&mut self, permit: mpsc::Permit<'_, proto::FromProxy>, ready: bool) {
        if let Some(hash) = self.learned.take() {
            let remembered = proto::Remembered { ca_hash: hash_to_bytes(hash) };
            permit.send(proto::FromProxy { message: Some(proto::from_proxy::Message::Remembered(remembered)) });
        } else if let Some((ack, observed)) = ready.then(|| self.acks.pop()).flatten() {
            self.acknowledge(permit, ack, observed);
        } else if let Some(part) = self.part.take() {
            permit.send(proto::FromProxy { message: Some(proto::from_proxy::Message::Answer(part)) });
        }
    }

    fn acknowledge(&self, permit: mpsc::Permit<'_, proto::FromProxy>, ack: proto::Ack, observed: u64) {
        permit.send(proto::FromProxy { message: Some(proto::from_proxy::Message::Ack(ack)) });
        let metrics = &self.client.metrics;
        metrics.acks_pending.set(i64::try_from(self.acks.len()).unwrap_or(i64::MAX));
        if observed > 0 {
            // Two machines' clocks: what seems to come from the future took no time.
            let took = Duration::from_nanos(unix_nanos().saturating_sub(observed));
            metrics.programming_latency.observe(took.as_secs_f64());
            metrics.compat.iter().for_each(|compat| compat.took(took));
        }
    }

    async fn receive(&mut self, message: proto::FromController) -> Option<End> {
        match message.message {
            Some(proto::from_controller::Message::Update(update)) => self.take(update).await,
            Some(proto::from_controller::Message::Directory(directory)) => {
                match self.client.book.learn(directory) {
                    Ok(hash) => self.learned = Some(hash),
                    Err(error) => tracing::warn!(
                        controller = self.endpoint,
                        error,
                        "what this replica says about replicas and CAs can't be used; what was known stands"
                    ),
                }
                None
            }
            Some(proto::from_controller::Message::Question(question)) => {
                self.questions.ask(question);
                None
            }
            None => {
                let controller = &self.endpoint;
                tracing::debug!(controller, "a message of a kind that this version doesn't know is skipped");
                None
            }
        }
    }

    async fn take(&mut self, update: proto::Update) -> Option<End> {
        let mut decoded = decode_update(update);
        if goes_back(&decoded.delta.view, &self.view) {
            if self.series.is_over() || !self.turn.may_go_back {
                self.client.metrics.stream_refused.inc();
                return Some(End::BackInTime);
            }
            tracing::warn!(
                controller = self.endpoint,
                "every replica that answers has older state than this node has applied, so the source itself went back \
                 (a restored backup?); taking over what is there",
            );
        }
        if self.view.source != decoded.delta.view.source && !self.view.source.is_empty() {
            tracing::warn!(
                controller = self.endpoint,
                before = self.view.source,
                now = decoded.delta.view.source,
                "the controller serves another source than before; taking over its state",
            );
        }
        let age = decoded.age;
        let complete = self.series.hold_back(&mut decoded);
        self.view.clone_from(&decoded.delta.view);
        let nacks = self.nacks(&mut decoded);
        let (nonce, observed) = (decoded.nonce, decoded.delta.observed_unix_nanos);
        let names: Vec<ResourceKey> = decoded.delta.upserts.iter().map(|upsert| upsert.resource.key()).collect();
        self.client.status.accepted(names.iter().chain(&decoded.delta.removals));
        let (applied, mut revision) = oneshot::channel();
        let change = Change { delta: decoded.delta, complete, applied };
        if self.client.store.changes.send(change).await.is_err() {
            return Some(self.end("the store has ended".to_owned()));
        }
        if !self.series.is_over() {
            // The data paths may wait for the end of the first series, and the controller for acks before it sends that.
            let _ = (&mut revision).await;
            self.acks.push(Pending::early(nonce, nacks));
        } else {
            self.acks.push(Pending::new(nonce, nacks, observed, revision));
        }
        self.client.metrics.acks_pending.set(i64::try_from(self.acks.len()).unwrap_or(i64::MAX));
        if !self.series.is_over() {
            return None;
        }
        self.client.status.update(|state| state.confirm(age));
        if self.turn.oldest.is_some_and(|oldest| age > oldest) {
            return Some(End::Old(age));
        }
        if complete {
            self.completed();
        }
        None
    }

    fn completed(&self) {
        self.client.metrics.stream_connected.set(1);
        let endpoint = self.endpoint.clone();
        tracing::info!(controller = endpoint, "in step with the controller");
        self.client.status.update(|state| state.controller = Some(endpoint));
    }

    /// Says and counts what can't be taken in, and makes the answers.
    fn nacks(&self, decoded: &mut Decoded) -> Vec<proto::Nack> {
        let mut nacks = foreign_nodes(decoded, &self.client.node);
        nacks.extend(decoded.refused.iter().map(sheave_api::Refusal::to_nack));
        for nack in &nacks {
            let key = nack.name.as_ref().and_then(|name| sheave_api::key_from_name(name).ok());
            let name = key.map_or_else(|| "a resource without a name".to_owned(), |key| key.to_string());
            tracing::warn!(
                resource = name,
                reason = nack.reason,
                controller = self.endpoint,
                "refused; what was known of it stands: mend the object, or use a controller of this proxy's version",
            );
            self.client.status.refused(name, nack.reason.clone());
        }
        self.client.metrics.nacks.inc_by(nacks.len() as u64);
        nacks
    }
}

fn hello(node: &str, snapshot: &Snapshot) -> proto::FromProxy {
    let hello = proto::Hello {
        node: node.to_owned(),
        known: snapshot.hashes().map(|(key, hash)| known(&key, hash)).collect(),
        view: Some(view_to_proto(&snapshot.view, Duration::ZERO)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    proto::FromProxy { message: Some(proto::from_proxy::Message::Hello(hello)) }
}

fn status_text(status: &tonic::Status) -> String {
    match status.message() {
        "" => with_causes(status),
        message => format!("{} ({})", message, status.code()),
    }
}
