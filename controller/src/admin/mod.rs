//! The admin pages: metrics and health over TCP; the same, /debug and the log level over a unix socket, whose file mode says
//! who may look and change.

mod debug;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::{debug, info};

use crate::config::Config;
use crate::engine::Question;
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::serve::Nodes;

/// Connections at a time, on each listener.
const MAX_CONNECTIONS: usize = 64;

/// A connection ends after this long, whatever it does: a client that asks and never reads would stay for ever.
const LIFE: Duration = Duration::from_secs(30);

/// A request's head must be there by then, an idle connection is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept, which is mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the pages show.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) questions: mpsc::Sender<Question>,
    pub(crate) log_level: LogLevel,
    pub(crate) stopping: watch::Receiver<bool>,
    /// Another controller has the state folder.
    pub(crate) waiting: Arc<AtomicBool>,
}

/// Which pages a listener has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Metrics and health.
    Public,
    /// Everything.
    Full,
}

type Page = Response<Full<Bytes>>;

impl Admin {
    async fn answer(&self, scope: Scope, request: &Request<Incoming>) -> Page {
        self.page(scope, request.method(), request.uri().path(), request.uri().query().unwrap_or_default()).await
    }

    async fn page(&self, scope: Scope, method: &Method, path: &str, query: &str) -> Page {
        match (method, path, scope) {
            (&Method::GET, "/metrics", _) => self.metrics_page(),
            (&Method::GET, "/healthz" | "/livez", _) => text(StatusCode::OK, "ok\n"),
            (&Method::GET, "/readyz", _) => self.ready_page(),
            (&Method::GET, "/debug/config", Scope::Full) => json(&serde_json::json!(self.config)),
            (&Method::GET, "/debug/snapshot", Scope::Full) => json(&debug::snapshot(&self.publisher, &self.nodes)),
            (&Method::GET, "/debug/services", Scope::Full) => {
                match debug::services(&self.publisher, &self.questions).await {
                    Some(page) => json(&page),
                    None => text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the source isn't being read yet, or the index is busy; try again\n",
                    ),
                }
            }
            (&Method::PUT, "/log-level", Scope::Full) => self.set_log_level(query),
            _ => text(StatusCode::NOT_FOUND, "no such page\n"),
        }
    }

    fn metrics_page(&self) -> Page {
        let slowest = self.nodes.slowest();
        let (depth, age) =
            self.publisher.read(|catalog, _, age| (slowest.map_or(0, |place| catalog.depth(place)), age));
        self.metrics.queue_depth.set(depth.try_into().unwrap_or(i64::MAX));
        self.metrics.view_age.set(age.as_secs_f64());
        let mut page = text(StatusCode::OK, &self.metrics.text());
        let format = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4");
        page.headers_mut().insert(CONTENT_TYPE, format);
        page
    }

    fn ready_page(&self) -> Page {
        if *self.stopping.borrow() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "ending\n");
        }
        if self.waiting.load(Ordering::Relaxed) {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "another controller uses --state-dir; waiting for it to end\n",
            );
        }
        if !self.publisher.is_ready() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the first full list isn't complete\n");
        }
        text(StatusCode::OK, "ok\n")
    }

    fn set_log_level(&self, query: &str) -> Page {
        let Some(filter) = query.split('&').find_map(|pair| pair.strip_prefix("filter=")) else {
            return text(StatusCode::BAD_REQUEST, "no filter; PUT /log-level?filter=info,sheave_controller=debug\n");
        };
        let filter = percent_decoded(filter);
        match self.log_level.set(&filter) {
            Ok(()) => {
                info!(filter, "the log level was changed");
                text(StatusCode::OK, "ok\n")
            }
            Err(error) => text(StatusCode::BAD_REQUEST, &format!("{error}\n")),
        }
    }
}

/// Serves metrics and health.
pub(crate) async fn serve_tcp(admin: Arc<Admin>, listener: Arc<TcpListener>) -> anyhow::Result<()> {
    let mut crowd = Crowd::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => crowd.admit(connection(admin.clone(), Scope::Public, stream)),
            Err(error) => pause(&error).await,
        }
    }
}

/// Serves everything.
pub(crate) async fn serve_unix(admin: Arc<Admin>, listener: Arc<UnixListener>) -> anyhow::Result<()> {
    let mut crowd = Crowd::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => crowd.admit(connection(admin.clone(), Scope::Full, stream)),
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &std::io::Error) {
    debug!(%error, "an admin connection can't be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// The connections of a listener, oldest first. The oldest gives way to one too many, so that a kubelet's probe is answered
/// whoever else holds connections.
#[derive(Debug, Default)]
struct Crowd(VecDeque<AbortHandle>);

impl Crowd {
    fn admit(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.0.retain(|one| !one.is_finished());
        if self.0.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(tokio::spawn(connection).abort_handle());
    }
}

/// Serves one connection to its end.
async fn connection<S>(admin: Arc<Admin>, scope: Scope, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request| {
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(admin.answer(scope, &request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    match tokio::time::timeout(LIFE, http.serve_connection(TokioIo::new(stream), answer)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "an admin connection failed"),
        Err(_) => debug!("an admin connection was cut after {} s", LIFE.as_secs()),
    }
}

fn text(status: StatusCode, body: &str) -> Page {
    let mut page = Response::new(Full::from(body.to_owned()));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain"));
    page
}

fn json(value: &serde_json::Value) -> Page {
    let mut page = text(StatusCode::OK, &format!("{value:#}\n"));
    page.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    page
}

/// Decodes %XX; what is no such code stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let code = rest
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) if first == b'%' => {
                out.push(code);
                bytes = &rest[2..];
            }
            _ => {
                out.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::publish::Standing;

    fn admin() -> (Admin, watch::Sender<bool>) {
        let metrics = Arc::new(Metrics::new());
        let (stop, stopping) = watch::channel(false);
        let (questions, _) = mpsc::channel(1);
        let config = crate::config::tests::config(&["--source", "kube", "--socket", "s"]).unwrap();
        let (log_level, layer) = LogLevel::detached();
        Box::leak(layer); // the handle works only while its layer lives
        let admin = Admin {
            config,
            publisher: Arc::new(Publisher::new(metrics.clone())),
            nodes: Arc::new(Nodes::new(metrics.clone())),
            metrics,
            questions,
            log_level,
            stopping,
            waiting: Arc::default(),
        };
        (admin, stop)
    }

    async fn get(admin: &Admin, scope: Scope, path: &str) -> (u16, String) {
        let page = admin.page(scope, &Method::GET, path, "").await;
        let status = page.status().as_u16();
        (status, String::from_utf8(page.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_follows_the_first_list_and_the_end() {
        let (admin, stop) = admin();
        assert_eq!(get(&admin, Scope::Public, "/readyz").await.0, 503);
        admin.waiting.store(true, Ordering::Relaxed);
        assert!(get(&admin, Scope::Public, "/readyz").await.1.contains("--state-dir"));
        admin.waiting.store(false, Ordering::Relaxed);
        let standing = Standing { ready: true, ..admin.publisher.standing() };
        admin.publisher.publish(Vec::new(), 0, standing);
        assert_eq!(get(&admin, Scope::Public, "/readyz").await.0, 200);
        stop.send_replace(true);
        assert_eq!(get(&admin, Scope::Public, "/readyz").await, (503, "ending\n".into()));
        assert_eq!(get(&admin, Scope::Public, "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn what_shows_or_changes_state_is_not_on_tcp() {
        let (admin, _stop) = admin();
        for path in ["/debug/config", "/debug/snapshot", "/debug/services"] {
            assert_eq!(get(&admin, Scope::Public, path).await.0, 404, "{path}");
            assert_ne!(get(&admin, Scope::Full, path).await.0, 404, "{path}");
        }
        let put = |scope, query: &'static str| admin.page(scope, &Method::PUT, "/log-level", query);
        assert_eq!(put(Scope::Public, "filter=debug").await.status(), 404);
        assert_eq!(put(Scope::Full, "filter=info%2Chyper%3Dwarn").await.status(), 200);
        assert_eq!(put(Scope::Full, "filter=a=b=c").await.status(), 400);
        assert_eq!(put(Scope::Full, "").await.status(), 400);
        assert!(get(&admin, Scope::Public, "/metrics").await.1.contains("sheave_subscribers 0"));
    }

    #[tokio::test]
    async fn a_page_that_nobody_answers_for_says_so() {
        let (mut admin, _stop) = admin();
        let (questions, _unread) = mpsc::channel(1);
        admin.questions = questions;
        let page = tokio::time::timeout(Duration::from_secs(20), get(&admin, Scope::Full, "/debug/services")).await;
        assert_eq!(page.expect("it doesn't hang").0, 503);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_reads_is_cut_off() {
        let ((admin, _stop), (mut client, server)) = (admin(), tokio::io::duplex(64));
        client.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let served = connection(Arc::new(admin), Scope::Public, server);
        tokio::time::timeout(LIFE * 2, served).await.expect("it ends");
        let mut begun = Vec::new();
        client.read_to_end(&mut begun).await.unwrap();
        assert_eq!(begun.len(), 64, "it was in the midst of an answer");
    }

    #[tokio::test]
    async fn a_probe_is_answered_whoever_else_holds_connections() {
        let (admin, _stop) = admin();
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_tcp(Arc::new(admin), listener));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut said = String::new();
        let answer = tokio::time::timeout(HEAD_TIMEOUT / 2, probe.read_to_string(&mut said)).await;
        answer.expect("it is answered at once").unwrap();
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0, "the oldest gave way");
    }

    #[test]
    fn percent_codes_are_decoded_and_stray_signs_stay() {
        assert_eq!(percent_decoded("a%2Cb%zz%4"), "a,b%zz%4");
    }
}
