//! What operators may ask of this replica, and by way of it of its proxies. Nothing can be changed here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sheave_api::proto::operations_server::Operations;
use sheave_api::proto::{self, KnownService, NodeAnswer, NodeQuestion, Overview, ServiceFilter, ServiceList};
use sheave_api::{MAX_PART_BYTES, decode_resource, hash_to_bytes};
use sheave_index::{Condition, Kind, ObjectKey};
use sheave_model::{NodeFacts, Resource, ResourceKey, Service, claims};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::Extensions;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::Server;
use super::auth::Peer;
use super::relay::{PARTS, Relayed};
use crate::engine::{self, Question, Wrong};
use crate::trust::{Denied, Operators};

/// Calls at a time. An operator's command makes up to eight, and asks again.
const AT_A_TIME: usize = 64;

/// How long a node's answer may take, all of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Faults that are named; more are counted.
const MAX_FAULTS: usize = 1000;

/// Messages of a series that wait for the connection.
const OUTGOING: usize = 4;

/// What the calls need.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    server: Server,
    replica: String,
    questions: mpsc::Sender<Question>,
    /// Judges tokens; none where operators show certificates.
    operators: Option<Arc<Operators>>,
    turns: Arc<Semaphore>,
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

impl Desk {
    /// For a replica of this name. `questions` go to its index task.
    pub(crate) fn new(server: Server, replica: String, questions: mpsc::Sender<Question>) -> Self {
        Self { server, replica, questions, operators: None, turns: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// The same, where operators prove themselves by tokens.
    pub(crate) fn by_tokens(&self, operators: Arc<Operators>) -> Self {
        Self { operators: Some(operators), ..self.clone() }
    }

    /// Whether whoever asks may, and that not too many do.
    async fn admit<T>(&self, call: &'static str, request: &Request<T>) -> Result<OwnedSemaphorePermit, Status> {
        let turn = self.turns.clone().try_acquire_owned();
        let turn = turn.map_err(|_| Status::resource_exhausted("this replica answers others; ask again"));
        let admitted = match turn {
            Ok(turn) => self.known(request.metadata(), request.extensions()).await.map(|()| turn),
            Err(status) => Err(status),
        };
        let result = match &admitted {
            Ok(_) => "admitted",
            Err(status) if status.code() == Code::ResourceExhausted => "busy",
            Err(_) => "refused",
        };
        self.server.metrics.operator_calls.with_label_values(&[call, result]).inc();
        admitted
    }

    async fn known(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<(), Status> {
        let Some(operators) = &self.operators else { return Peer::of(extensions)?.may_operate() };
        operators.admit(&super::auth::token(metadata, "sheave asks for one by itself")?).await.map_err(|denied| {
            match denied {
                Denied::Token(why) => Status::unauthenticated(why),
                Denied::Access(why) => Status::permission_denied(why),
                Denied::Unknown(_) => Status::unavailable(denied.to_string()),
            }
        })
    }

    fn overview(&self, wrong: Option<&Wrong>) -> Overview {
        let Server { publisher, nodes, metrics, .. } = &self.server;
        let (shelf, source, age) = publisher.read(|catalog, view, age| (catalog.shelf(), view.source.clone(), age));
        let services = shelf.iter().filter(|(key, ..)| matches!(key, ResourceKey::Service(_))).count();
        let all = wrong.map_or(0, |wrong| wrong.conditions.len());
        Overview {
            replica: self.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: publisher.is_ready(),
            leads: metrics.leader.get() == 1,
            source,
            age_millis: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            revision: shelf.revision(),
            services: u32::try_from(services).unwrap_or(u32::MAX),
            nodes: publisher.nodes(),
            streams: nodes.to_proto(),
            faults: wrong.into_iter().flat_map(|wrong| &wrong.conditions).take(MAX_FAULTS).map(fault).collect(),
            problems: wrong.map(|wrong| wrong.problems.clone()).unwrap_or_default(),
            ca_expires: metrics.ca_expiry.get(),
            unix_millis: unix_millis(),
            faults_left_out: u32::try_from(all.saturating_sub(MAX_FAULTS)).unwrap_or(u32::MAX),
        }
    }

    /// Every Service that the filter names, in parts.
    fn known_services(&self, filter: &ServiceFilter, wrong: &Wrong) -> impl Iterator<Item = ServiceList> + use<> {
        let mut of: BTreeMap<ObjectKey, Vec<proto::Fault>> = BTreeMap::new();
        for condition in &wrong.conditions {
            of.entry(condition.object.clone()).or_default().push(fault(condition));
        }
        let (shelf, progress) =
            (self.server.publisher.read(|catalog, _, _| catalog.shelf()), self.server.nodes.progress());
        let wanted = |key: &ResourceKey| {
            matches!(key, ResourceKey::Service(key)
            if (filter.namespace.is_empty() || *key.namespace == *filter.namespace)
                && (filter.name.is_empty() || *key.name == *filter.name))
        };
        let (mut lists, mut size) = (vec![ServiceList::default()], 0);
        for (key, encoded, revision) in shelf.iter().filter(|(key, ..)| wanted(key)) {
            let Ok(Resource::Service(service)) = decode_resource(key, encoded.bytes.clone()) else { continue };
            let object = ObjectKey::new(Kind::Service, service.key.namespace.clone(), service.key.name.clone());
            let (programmed, refused_by) = progress.of(key, revision);
            let known = KnownService {
                hash: hash_to_bytes(encoded.hash),
                revision,
                faults: of.remove(&object).unwrap_or_default(),
                programmed: u32::try_from(programmed).unwrap_or(u32::MAX),
                refused_by: refused_by.to_vec(),
                ..known(&service)
            };
            let bytes = prost_len(&known);
            if size > 0 && size + bytes > MAX_PART_BYTES {
                lists.push(ServiceList::default());
                size = 0;
            }
            size += bytes;
            if let Some(list) = lists.last_mut() {
                list.services.push(known);
            }
        }
        lists.into_iter()
    }

    /// Sends a question to a node's proxy and its answer to `outgoing`.
    async fn relay(
        &self,
        question: NodeQuestion,
        outgoing: &mpsc::Sender<Result<NodeAnswer, Status>>,
    ) -> Result<(), Status> {
        let node = question.node.clone();
        let asked = self.server.nodes.questions(&node);
        let asked = asked.ok_or_else(|| Status::not_found(format!("node {node:?} has no stream to this replica")))?;
        let (answers, mut parts) = mpsc::channel(PARTS);
        let busy = |_| Status::resource_exhausted(format!("the proxy of node {node:?} answers others; ask again"));
        asked.try_send(Relayed { question, answers }).map_err(busy)?;
        let mut heard = false;
        loop {
            match parts.recv().await {
                Some(Some(part)) => {
                    heard = true;
                    if outgoing.send(Ok(part)).await.is_err() {
                        return Ok(());
                    }
                }
                Some(None) => return Ok(()),
                None if heard => return Err(Status::aborted(format!("the answer of node {node:?} was cut"))),
                None => return Err(Status::unavailable(format!("the stream of node {node:?} ended"))),
            }
        }
    }
}

/// As much as a message takes, without its framing.
fn prost_len(known: &KnownService) -> usize {
    let texts = known.frontends.iter().chain(&known.refused_by).chain(&known.ports).map(|text| text.len() + 2);
    let faults = known.faults.iter().map(|f| f.object.len() + f.field.len() + f.message.len() + f.remedy.len() + 10);
    known.namespace.len() + known.name.len() + 64 + texts.sum::<usize>() + faults.sum::<usize>()
}

fn known(service: &Service) -> KnownService {
    let count = |test: fn(&sheave_model::Endpoint) -> bool| {
        u32::try_from(service.endpoints.iter().filter(|e| test(e)).count()).unwrap_or(u32::MAX)
    };
    let frontends = claims(service, &NodeFacts::default());
    // Those on localhost are NodePorts, which every node has.
    let frontends = frontends.iter().filter(|claim| !claim.frontend.address.ip().is_loopback());
    let port = |port: &sheave_model::ServicePort| match port.node_port {
        Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
        None => format!("{}/{}", port.port, port.protocol),
    };
    KnownService {
        namespace: service.key.namespace.to_string(),
        name: service.key.name.to_string(),
        frontends: frontends.map(|claim| claim.frontend.to_string()).collect(),
        ready: count(|endpoint| endpoint.ready),
        terminating: count(|endpoint| endpoint.terminating),
        endpoints: count(|_| true),
        ports: service.ports.iter().map(port).collect(),
        ..KnownService::default()
    }
}

fn fault(condition: &Condition) -> proto::Fault {
    proto::Fault {
        object: condition.object.to_string(),
        field: condition.field.clone(),
        message: condition.message.clone(),
        remedy: condition.remedy.clone(),
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl Operations for Desk {
    type KnownServicesStream = Answers<ServiceList>;
    type AskNodeStream = Answers<NodeAnswer>;

    async fn look(&self, request: Request<proto::LookRequest>) -> Result<Response<Overview>, Status> {
        let _turn = self.admit("look", &request).await?;
        let wrong = engine::wrong(&self.questions).await;
        Ok(Response::new(self.overview(wrong.as_ref())))
    }

    async fn known_services(
        &self,
        request: Request<ServiceFilter>,
    ) -> Result<Response<Self::KnownServicesStream>, Status> {
        let turn = self.admit("services", &request).await?;
        let wrong = engine::wrong(&self.questions).await;
        let busy = || Status::unavailable("the source isn't being read yet, or the index is busy; ask again");
        let lists = self.known_services(request.get_ref(), &wrong.ok_or_else(busy)?);
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        tokio::spawn(async move {
            let _turn = turn;
            for list in lists {
                if outgoing.send(Ok(list)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn ask_node(&self, request: Request<NodeQuestion>) -> Result<Response<Self::AskNodeStream>, Status> {
        let turn = self.admit("node", &request).await?;
        let question = request.into_inner();
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let desk = self.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let node = question.node.clone();
            let relayed = tokio::time::timeout(PATIENCE, desk.relay(question, &outgoing)).await;
            let (result, status) = match relayed {
                Ok(Ok(())) => ("answered", None),
                Ok(Err(status)) => ("failed", Some(status)),
                Err(_) => {
                    let why = format!(
                        "the proxy of node {node:?} did not answer within {} s; it hangs, or its version has no answers",
                        PATIENCE.as_secs()
                    );
                    ("late", Some(Status::deadline_exceeded(why)))
                }
            };
            desk.server.metrics.relayed_questions.with_label_values(&[result]).inc();
            if let Some(status) = status {
                // Whoever asked may be gone.
                let _ = outgoing.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
