//! An API server for tests: objects of one namespace in a map, with resource versions and conflicts, or answers as they are told.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Status and body.
pub(crate) type Answer = (u16, Value);

/// A client of a server that answers each method and path, with the body, as `answer` says.
pub(crate) fn server(answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let line = format!("{} {}", request.method(), request.uri().path());
            let body = request.into_body().collect().await.expect("a body in memory").to_bytes();
            let (status, body) = answer(&line, &serde_json::from_slice(&body).unwrap_or(Value::Null));
            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
            *response.status_mut() = status.try_into().expect("a status");
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}

/// An answer that is an error.
pub(crate) fn status(code: u16) -> Answer {
    let reason = if code == 404 { "NotFound" } else { "Conflict" };
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": reason,
        "code": code});
    (code, body)
}

/// A token of this form; nobody checks its signature here.
pub(crate) fn token(subject: &str, expires: u64) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "none"})), part(&json!({"sub": subject, "exp": expires})))
}

/// A review of a token of an account of namespace sheave-system, bound to a pod on a node or to none.
pub(crate) fn review(account: &str, audiences: &[&str], node: Option<&str>) -> Answer {
    let mut user = json!({"username": format!("system:serviceaccount:sheave-system:{account}")});
    if let Some(node) = node {
        user["extra"] = json!({"authentication.kubernetes.io/node-name": [node]});
    }
    let status = json!({"authenticated": true, "audiences": audiences, "user": user});
    (
        201,
        json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {}, "status": status}),
    )
}

/// A review of a token that has expired.
pub(crate) fn not_authentic() -> Answer {
    let status = json!({"authenticated": false, "error": "service account token has expired"});
    (
        201,
        json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {}, "status": status}),
    )
}

/// Objects by `resource/name`.
#[derive(Clone, Default)]
pub(crate) struct Store {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    version: Arc<Mutex<u64>>,
}

impl Store {
    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        let store = self.clone();
        server(move |line, body| store.answer(line, body))
    }

    /// An object, as it is.
    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(key).cloned()
    }

    /// Takes an object away.
    pub(crate) fn remove(&self, key: &str) {
        self.objects.lock().unwrap().remove(key);
    }

    /// Names of all objects of a resource.
    pub(crate) fn names(&self, resource: &str) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        objects.keys().filter_map(|key| key.strip_prefix(resource)?.strip_prefix('/')).map(str::to_owned).collect()
    }

    /// Writes an object as somebody else would.
    pub(crate) fn put(&self, key: &str, mut object: Value) {
        let mut version = self.version.lock().unwrap();
        *version += 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.objects.lock().unwrap().insert(key.to_owned(), object);
    }

    fn answer(&self, line: &str, body: &Value) -> Answer {
        let (method, path) = line.split_once(' ').expect("method and path");
        let tail = path.split("/namespaces/sheave-system/").nth(1).expect("a path of the controller's namespace");
        let key = match body["metadata"]["name"].as_str().filter(|_| method == "POST") {
            Some(name) => format!("{tail}/{name}"),
            None => tail.to_owned(),
        };
        let old = self.get(&key);
        match (method, old) {
            ("GET", Some(object)) => (200, object),
            ("GET", None) if !tail.contains('/') => {
                let items: Vec<Value> =
                    self.names(tail).iter().filter_map(|name| self.get(&format!("{tail}/{name}"))).collect();
                (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
            }
            ("POST", None) => {
                self.put(&key, body.clone());
                (201, self.get(&key).expect("it was just put"))
            }
            ("PUT", Some(old)) if old["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"] => {
                self.put(&key, body.clone());
                (200, self.get(&key).expect("it was just put"))
            }
            ("POST" | "PUT", Some(_)) => status(409),
            ("DELETE", Some(_)) => {
                self.remove(&key);
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => status(404),
        }
    }
}
