//! Which path shows what, on which listener.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prost::Message;
use serde_json::json;
use sheave_api::proto::node_question::What;
use sheave_api::proto::{NodeQuestion, NodeStatusWanted, ServiceFilter};

use super::{Admin, Listener, answers, debug};
use crate::metrics::Page;
use crate::status::Source;

/// What every page is made of.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Answers one request.
pub(super) async fn answer<B>(admin: &Admin, listener: &Listener, request: &Request<B>) -> Response<Body> {
    let path = request.uri().path();
    if request.method() == Method::PUT {
        return match (listener, path) {
            (Listener::Socket(_), "/log-level") => log_level(admin, request.uri().query()),
            _ => text(StatusCode::NOT_FOUND, "nothing can be changed here\n".to_owned()),
        };
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET\n".to_owned());
    }
    match (listener, path) {
        (_, "/healthz" | "/livez") => {
            let response = health(admin);
            if let (Some(compat), Listener::Health(_)) = (&admin.metrics.compat, listener) {
                let page = if path == "/healthz" { Page::Healthz } else { Page::Livez };
                compat.answered(page, response.status().as_u16());
            }
            response
        }
        (Listener::Admin(_) | Listener::Socket(_), "/readyz") => ready(admin),
        (Listener::Admin(_) | Listener::Socket(_), "/metrics") => metrics(admin).await,
        (Listener::Socket(_), "/debug/config") => json_page(StatusCode::OK, &json!(*admin.config)),
        (Listener::Socket(_), "/debug/snapshot") => debug::snapshot(admin),
        (Listener::Socket(_), "/debug/services") => debug::services(admin),
        (Listener::Socket(_), "/operations/status") => operation(admin, What::Status(NodeStatusWanted {})).await,
        (Listener::Socket(_), "/operations/services") => {
            let given = |name| parameter(request.uri().query(), name).unwrap_or_default();
            let filter = ServiceFilter { namespace: given("namespace="), name: given("name=") };
            operation(admin, What::Services(filter)).await
        }
        _ => text(StatusCode::NOT_FOUND, "no such page\n".to_owned()),
    }
}

fn health(admin: &Admin) -> Response<Body> {
    let report = admin.freshness.report();
    let status = if report.healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let page = json!({
        "healthy": report.healthy(),
        "revisionReceived": report.received,
        "revisionApplied": report.applied,
        "laggingSeconds": report.lagging.as_secs(),
    });
    json_page(status, &page)
}

fn ready(admin: &Admin) -> Response<Body> {
    let state = admin.status.get();
    let not_ready = state.not_ready(admin.freshness.report().applied);
    let status = if not_ready.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let page = json!({
        "ready": not_ready.is_none(),
        "reason": not_ready,
        "snapshot": match state.source {
            Source::Nothing => "none",
            Source::Disk => "disk",
            Source::StaleDisk => "stale: from the disk of another boot or network namespace, without this node's own endpoints",
            Source::Controller => "controller",
        },
        "snapshotAgeSeconds": state.age().map(|age| age.as_secs()),
        "controller": state.controller,
        "datapath": state.datapath.map(|(mode, reason)| json!({"mode": mode, "reason": reason})),
    });
    json_page(status, &page)
}

async fn metrics(admin: &Admin) -> Response<Body> {
    admin.refresh().await;
    if let Some(compat) = &admin.metrics.compat {
        compat.refresh(&admin.snapshot(), &admin.config.node.name);
    }
    if let Some(age) = admin.status.get().age() {
        admin.metrics.snapshot_age.set(age.as_secs_f64());
    }
    match admin.metrics.page() {
        Ok(page) => {
            let mut response = Response::new(full(page));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn log_level(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let Some(filter) = parameter(query, "filter=").filter(|filter| !filter.is_empty()) else {
        return text(StatusCode::BAD_REQUEST, "give ?filter=, e.g. ?filter=sheave_proxy=debug,info\n".to_owned());
    };
    match admin.log_level.set(&filter) {
        Ok(()) => {
            tracing::info!(filter, "the log level was changed");
            text(StatusCode::OK, format!("{filter}\n"))
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    }
}

/// The parts of an answer (`sheave.discovery.v1.NodeAnswer`), one after the other.
async fn operation(admin: &Admin, what: What) -> Response<Body> {
    let parts = answers::answer(admin, &NodeQuestion { node: String::new(), what: Some(what) }).await;
    let frames = parts.map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(part.encode_to_vec()))));
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    response
}

/// A parameter of a query, whose name comes with its `=`.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix(name)).map(percent_decoded)
}

/// RFC 3986 section 2.1; what isn't an escape stands for itself.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let escaped = rest.get(..2).filter(|_| first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                bytes = &rest[2..];
            }
            None => {
                out.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn json_page(status: StatusCode, page: &serde_json::Value) -> Response<Body> {
    let mut response = text(status, format!("{page:#}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::{admin, body};
    use crate::status::Phase;

    async fn get(admin: &Admin, listener: &Listener, path: &str) -> (StatusCode, String) {
        let request = Request::builder().uri(path).body(()).unwrap();
        let response = answer(admin, listener, &request).await;
        (response.status(), body(response).await)
    }

    #[tokio::test]
    async fn tcp_shows_metrics_and_health_only() {
        let admin = admin();
        let tcp = Listener::Admin("127.0.0.1:1".parse().unwrap());
        let health = Listener::Health("127.0.0.1:1".parse().unwrap());
        let socket = Listener::Socket("/x".into());
        for (path, on_admin, on_health) in [
            ("/metrics", 200, 404),
            ("/healthz", 200, 200),
            ("/livez", 200, 200),
            ("/readyz", 503, 404),
            ("/debug/config", 404, 404),
            ("/debug/snapshot", 404, 404),
            ("/debug/services", 404, 404),
            ("/operations/status", 404, 404),
            ("/operations/services", 404, 404),
        ] {
            assert_eq!(get(&admin, &tcp, path).await.0.as_u16(), on_admin, "{path}");
            assert_eq!(get(&admin, &health, path).await.0.as_u16(), on_health, "{path}");
            let expected = if path == "/readyz" { 503 } else { 200 };
            assert_eq!(get(&admin, &socket, path).await.0.as_u16(), expected, "{path}");
        }
        let put = Request::builder().method(Method::PUT).uri("/log-level?filter=debug").body(()).unwrap();
        assert_eq!(answer(&admin, &tcp, &put).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(answer(&admin, &socket, &put).await.status(), StatusCode::OK);
        let wrong = Request::builder().method(Method::PUT).uri("/log-level?filter=a%3Db%3dc").body(()).unwrap();
        assert_eq!(answer(&admin, &socket, &wrong).await.status(), StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn a_second_process_says_whom_it_waits_for() {
        let admin = admin();
        admin.status.update(|state| state.phase = Phase::Waiting(Some(77)));
        let (status, page) = get(&admin, &Listener::Socket("/x".into()), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(page.contains("process 77 owns this node"), "{page}");
    }

    #[test]
    fn escapes_are_decoded_and_stray_percents_stand() {
        assert_eq!(percent_decoded("a%3Db%2c%zz%4"), "a=b,%zz%4");
    }
}
