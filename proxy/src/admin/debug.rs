//! /debug/snapshot and /debug/services: written Service by Service while the client reads, so that a large cluster's page
//! is never in memory as a whole.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use super::pages::Body;
use super::{Admin, views};

/// Everything that was received, as it was received.
pub(super) fn snapshot(admin: &Admin) -> Response<Body> {
    let snapshot = admin.snapshot();
    let head = json!({
        "revision": snapshot.revision,
        "source": snapshot.view.source,
        "versions": snapshot.view.versions,
        "node": snapshot.node.as_ref().map(|(_, node)| views::node(node)),
        "cluster": snapshot.cluster.as_ref().map(|(_, cluster)| views::cluster(cluster)),
    });
    let services = snapshot.services.clone().into_iter();
    page(&head, services.map(|(_, state)| views::service(&state)))
}

/// What is served: each Service's frontends, who keeps them, and what was carried.
pub(super) fn services(admin: &Admin) -> Response<Body> {
    let snapshot = admin.snapshot();
    let head = json!({ "revision": snapshot.revision, "refused": admin.status.get().refused });
    let (services, metrics) = (snapshot.services.clone().into_iter(), admin.metrics.services.clone());
    page(&head, services.map(move |(_, state)| views::served(&state, &snapshot, &metrics)))
}

/// `head` with `"services": [...]` in it.
fn page(head: &Value, services: impl Iterator<Item = Value> + Send + 'static) -> Response<Body> {
    let mut opening = head.to_string();
    opening.pop();
    opening.push_str(",\"services\":[\n");
    let entries =
        services.enumerate().map(|(index, service)| format!("{}{service}", if index == 0 { "" } else { ",\n" }));
    let frames = std::iter::once(opening).chain(entries).chain(std::iter::once("\n]}\n".to_owned()));
    let frames = frames.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text))));
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::{admin, body, snapshots};
    use crate::store::tests::service;

    #[tokio::test]
    async fn each_frontend_is_shown_with_who_keeps_it() {
        let admin = admin();
        let mut younger = service("b", "10.0.0.1");
        younger.created = 2;
        younger.ports[0].node_port = None;
        admin.own(snapshots(vec![service("a", "10.0.0.1"), younger]), Vec::new());
        let page: Value = serde_json::from_str(&body(services(&admin)).await).unwrap();
        let of = |index: usize| &page["services"][index]["frontends"][0];
        assert_eq!(of(0)["frontend"], "10.0.0.1:80/TCP");
        assert_eq!(of(0)["state"], "served");
        assert_eq!(of(0)["backends"], 1);
        assert_eq!(of(1)["state"], "shadowed");
        assert_eq!(of(1)["by"], "ns/a");
    }

    #[tokio::test]
    async fn the_snapshot_page_is_json_also_when_empty() {
        let admin = admin();
        let page: Value = serde_json::from_str(&body(snapshot(&admin)).await).unwrap();
        assert_eq!(page["services"], json!([]));
        admin.own(snapshots(vec![service("a", "10.0.0.1"), service("b", "10.0.0.2")]), Vec::new());
        let page: Value = serde_json::from_str(&body(snapshot(&admin)).await).unwrap();
        assert_eq!(page["services"][1]["name"], "ns/b");
        assert_eq!(page["services"][1]["endpoints"][0]["address"], "10.1.0.9");
    }
}
