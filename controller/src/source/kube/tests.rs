//! The list-and-watch loop against an API server that answers as it is told.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use kube::client::Body;
use sheave_index::{Kind, Object};
use tokio::sync::mpsc;

use super::*;
use crate::metrics::Metrics;
use crate::source::{Batch, Event, Relist};

/// Far more than it takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer's status and body; none: it never comes.
type Answer = Option<(u16, String)>;

/// A client of a server that answers each path with its query.
fn server(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer(&request.uri().to_string());
        async move {
            let Some((status, body)) = answer else { return std::future::pending().await };
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status.try_into().unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}

fn status(code: u16) -> Answer {
    let status =
        serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "code": code});
    Some((code, status.to_string()))
}

fn list_at(version: u64) -> Answer {
    let metadata = serde_json::json!({"resourceVersion": version.to_string()});
    let list = serde_json::json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": []});
    Some((200, list.to_string()))
}

/// A watch that brings bookmarks and then ends.
fn bookmarks(versions: &[u64]) -> Answer {
    let mark = |version: &u64| {
        let object = serde_json::json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}});
        format!("{}\n", serde_json::json!({"type": "BOOKMARK", "object": object}))
    };
    Some((200, versions.iter().map(mark).collect()))
}

struct Running {
    metrics: Arc<Metrics>,
    batches: mpsc::Receiver<Batch>,
    relist: Arc<Relist>,
    _task: JoinSet<Closed>,
}

fn start<K: kinds::Watched>(client: Client) -> Running {
    let metrics = Arc::new(Metrics::new());
    let (feed, batches, relist) = Feed::new(metrics.clone());
    let mut task = JoinSet::new();
    task.spawn(watch::run::<K>(client, feed));
    Running { metrics, batches, relist, _task: task }
}

impl Running {
    async fn next(&mut self) -> Vec<Event> {
        tokio::time::timeout(PATIENCE, self.batches.recv()).await.expect("a batch comes in time").unwrap().events
    }
}

#[tokio::test]
async fn a_kind_that_the_server_does_not_have_is_empty_and_no_error() {
    let asked = Arc::new(AtomicU32::new(0));
    let counter = asked.clone();
    let mut run = start::<ServiceCIDR>(server(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        status(404)
    }));
    let (begin, end) = (Event::BeginResync(Kind::ServiceCidr), Event::EndResync(Kind::ServiceCidr, 0));
    assert_eq!((run.next().await, run.next().await), (vec![begin.clone()], vec![end]));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1, "it is looked for now and then");
    assert_eq!(run.metrics.watch_errors.with_label_values(&["ServiceCIDR"]).get(), 0);
    run.relist.request(Kind::ServiceCidr);
    assert_eq!(run.next().await, [begin], "or when somebody asks for it");
}

#[tokio::test]
async fn pods_that_are_not_found_are_not_taken_to_be_gone() {
    let mut run = start::<Pod>(server(|_| status(404)));
    for _ in 0..3 {
        assert_eq!(run.next().await, [Event::BeginResync(Kind::Pod)]);
    }
    assert!(run.metrics.watch_errors.with_label_values(&["Pod"]).get() >= 2);
}

#[tokio::test]
async fn a_history_that_is_always_gone_is_not_listed_without_end() {
    let lists = Arc::new(AtomicU32::new(0));
    let counter = lists.clone();
    let mut run = start::<Pod>(server(move |uri| {
        if uri.contains("watch=") {
            return status(410);
        }
        counter.fetch_add(1, Ordering::SeqCst);
        list_at(5)
    }));
    let drain = async { while !run.next().await.is_empty() {} };
    assert!(tokio::time::timeout(Duration::from_millis(1500), drain).await.is_err());
    let lists = lists.load(Ordering::SeqCst);
    assert!((2..=12).contains(&lists), "{lists} lists in 1.5 s");
}

#[tokio::test]
async fn an_event_that_cannot_be_read_spares_the_others() {
    let event = |name: &str, version: &str, spec: serde_json::Value| {
        let object = serde_json::json!({
            "kind": "Pod", "apiVersion": "v1", "spec": spec,
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": version}
        });
        format!("{}\n", serde_json::json!({"type": "ADDED", "object": object}))
    };
    let good = serde_json::json!({"containers": []});
    let lines = [event("a", "6", good.clone()), event("bad", "7", "text".into()), event("b", "8", good)].concat();
    let versions = Arc::new(Mutex::new(Vec::new()));
    let seen = versions.clone();
    let mut run = start::<Pod>(server(move |uri| {
        let Some((_, version)) = uri.split_once("resourceVersion=").filter(|_| uri.contains("watch=")) else {
            return list_at(if seen.lock().unwrap().is_empty() { 5 } else { 8 });
        };
        let version = version.split('&').next().unwrap_or_default().to_owned();
        let first = version == "5";
        seen.lock().unwrap().push(version);
        if first { Some((200, lines.clone())) } else { None }
    }));
    let mut names = Vec::new();
    while names.len() < 2 {
        let applied = run.next().await.into_iter().filter_map(|event| match event {
            Event::Apply(Object { key, .. }) => Some(key.name.to_string()),
            _ => None,
        });
        names.extend(applied);
    }
    assert_eq!(names, ["a", "b"]);
    let again = async {
        while versions.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the watch goes on");
    assert_eq!(*versions.lock().unwrap(), ["5", "8"]);
    let count = |family: &prometheus::IntCounterVec| family.with_label_values(&["Pod"]).get();
    assert_eq!((count(&run.metrics.objects_rejected), count(&run.metrics.watch_errors)), (1, 0));
}

/// What a list of Pods brings.
fn listed(version: u64) -> [Vec<Event>; 2] {
    [vec![Event::BeginResync(Kind::Pod)], vec![Event::EndResync(Kind::Pod, version)]]
}

#[tokio::test]
async fn a_watch_that_is_opened_proves_nothing_and_an_answer_does() {
    let watches = Arc::new(AtomicU32::new(0));
    let counter = watches.clone();
    let mut run = start::<Pod>(server(move |uri| {
        if !uri.contains("watch=") {
            return list_at(7);
        }
        // The first ends at once, the second stands and brings nothing.
        if counter.fetch_add(1, Ordering::SeqCst) == 0 { bookmarks(&[]) } else { None }
    }));
    assert_eq!([run.next().await, run.next().await], listed(7));
    assert_eq!(run.next().await, [Event::Heard(Some(Kind::Pod))], "the server has all that is held");
    let more = tokio::time::timeout(Duration::from_millis(300), run.next()).await;
    assert!(more.is_err(), "{more:?}");
    assert_eq!(watches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_server_that_was_restored_to_an_older_state_is_listed_again() {
    let lists = Arc::new(AtomicU32::new(0));
    let mut run = start::<Pod>(server(move |uri| {
        // From a version that the server has yet to reach, watches can be opened and bring nothing.
        match uri.contains("watch=") {
            true => bookmarks(&[]),
            false => list_at(if lists.fetch_add(1, Ordering::SeqCst) == 0 { 1000 } else { 800 }),
        }
    }));
    assert_eq!([run.next().await, run.next().await], listed(1000));
    assert_eq!([run.next().await, run.next().await], listed(800), "nobody was heard of in between");
    assert_eq!(run.metrics.relists.with_label_values(&["Pod"]).get(), 1);
}

#[tokio::test]
async fn a_watch_that_brings_something_older_than_what_is_held_is_not_believed() {
    let watches = Arc::new(AtomicU32::new(0));
    let mut run = start::<Pod>(server(move |uri| {
        if !uri.contains("watch=") {
            return list_at(7);
        }
        if watches.fetch_add(1, Ordering::SeqCst) == 0 { bookmarks(&[9, 9, 3, 10]) } else { None }
    }));
    assert_eq!([run.next().await, run.next().await], listed(7));
    let mut seen = Vec::new();
    while !seen.contains(&Event::BeginResync(Kind::Pod)) {
        seen.extend(run.next().await);
    }
    assert_eq!(seen, [Event::Seen(Kind::Pod, 9), Event::Seen(Kind::Pod, 9), Event::BeginResync(Kind::Pod)]);
}
