//! The HTTP/1.1 servers under the pages: bounded connections, bounded patience, and a busy port tried again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use super::pages::{self, Body};
use super::{Admin, Listener};

/// Connections of one listener at a time. With one more the oldest ends: were the newest to wait, a few clients that don't
/// read would hold up /livez, and the kubelet would restart the proxy.
const CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head, and to read what is left of an answer at the end of [`LIFE`].
const HEAD: Duration = Duration::from_secs(10);
/// How long a TCP connection may last in all, so that a client that doesn't read lets go of its page. Prometheus gives up a
/// scrape after 10 s.
const LIFE: Duration = Duration::from_secs(30);
/// Pause between tries at a busy port, and after a failed accept.
const RETRY: Duration = Duration::from_secs(1);

/// Serves one TCP listener until everything stops. A busy port is tried again for as long as it takes.
pub(crate) async fn serve_tcp(admin: Admin, listener: Listener) {
    let (Listener::Admin(address) | Listener::Health(address)) = listener else { return };
    let socket = patiently(&admin, &address.to_string(), || TcpListener::bind(address)).await;
    let Some(socket) = socket else { return };
    let mut open = Open::default();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = admin.shutdown.stopped() => return,
        };
        match accepted {
            Ok((stream, _)) => open.add(connection(admin.clone(), listener.clone(), stream)),
            Err(error) => accept_failed(&error).await,
        }
    }
}

/// Tries until it can listen, or until everything stops.
async fn patiently<T, F>(admin: &Admin, address: &str, mut bind: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = std::io::Result<T>>,
{
    let mut told = false;
    loop {
        match bind().await {
            Ok(socket) => {
                tracing::info!(address, "listening");
                return Some(socket);
            }
            Err(error) if !told => {
                tracing::warn!(address, %error, "can't listen yet, trying again every second");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = admin.shutdown.stopped() => return None,
        }
    }
}

/// Serves the unix socket until everything stops. Only its owner may connect.
pub(crate) async fn serve_unix(admin: Admin, listener: Listener) {
    let Listener::Socket(path) = &listener else { return };
    let bind = || std::future::ready(bind_private(path));
    let Some(socket) = patiently(&admin, &path.display().to_string(), bind).await else { return };
    let mut open = Open::default();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = admin.shutdown.stopped() => break,
        };
        match accepted {
            Ok((stream, _)) => open.add(connection(admin.clone(), listener.clone(), stream)),
            Err(error) => accept_failed(&error).await,
        }
    }
    // The next process replaces what is left, so that it stays behind hurts nobody.
    let _ = std::fs::remove_file(path);
}

/// Under another name first, so that nobody can connect before the permissions are right, and what an earlier process left
/// is replaced in one step.
fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = Path::new(&name);
    match std::fs::remove_file(fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(fresh)?;
    std::fs::set_permissions(fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(fresh, path)?;
    Ok(socket)
}

async fn accept_failed(error: &std::io::Error) {
    tracing::warn!(%error, "an admin connection could not be accepted");
    tokio::time::sleep(RETRY).await;
}

/// A listener's connections, the oldest first.
#[derive(Default)]
struct Open(VecDeque<AbortHandle>);

impl Open {
    /// Adds one, and ends the oldest where there are too many.
    fn add(&mut self, connection: AbortHandle) {
        self.0.retain(|open| !open.is_finished());
        if self.0.len() >= CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

fn connection<S>(admin: Admin, listener: Listener, stream: S) -> AbortHandle
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let life = match listener {
        Listener::Admin(_) | Listener::Health(_) => LIFE,
        // An operator may look at a page for long.
        Listener::Socket(_) => Duration::MAX,
    };
    let task = async move {
        let service = service_fn(|request: Request<Incoming>| {
            let (admin, listener) = (admin.clone(), listener.clone());
            async move { Ok::<Response<Body>, Infallible>(pages::answer(&admin, &listener, &request).await) }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = tokio::time::sleep(life - HEAD) => {
                serving.as_mut().graceful_shutdown();
                let Ok(ended) = tokio::time::timeout(HEAD, serving).await else { return };
                ended
            }
            _ = admin.shutdown.stopped() => return,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an admin connection ended");
        }
    };
    tokio::spawn(task).abort_handle()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn clients_that_are_stuck_do_not_hold_up_the_kubelet() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        tokio::spawn(serve_tcp(crate::admin::tests::admin(), Listener::Admin(address)));
        let connect = async || loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let mut stuck = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = connect().await;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
            stuck.push(stream);
        }
        let mut probe = connect().await;
        probe.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(HEAD / 2, probe.read_to_string(&mut answer)).await;
        read.expect("it is answered at once").unwrap();
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert_eq!(stuck[0].read(&mut [0]).await.unwrap_or(0), 0, "the oldest gave way");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tcp_connection_whose_client_does_not_read_ends_and_an_operators_does_not() {
        let tcp: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for (listener, ends) in [(Listener::Admin(tcp), true), (Listener::Socket("/x".into()), false)] {
            // Room for a part of the page.
            let (mut client, server) = tokio::io::duplex(64);
            let task = connection(crate::admin::tests::admin(), listener, server);
            client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
            tokio::time::sleep(LIFE - Duration::from_secs(1)).await;
            assert!(!task.is_finished());
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(task.is_finished(), ends);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_cannot_be_made_yet_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("later");
        let path = folder.join("admin.sock");
        let admin = crate::admin::tests::admin();
        tokio::spawn(serve_unix(admin, Listener::Socket(path.clone())));
        tokio::time::sleep(RETRY * 3).await;
        assert!(!path.exists());
        std::fs::create_dir(&folder).unwrap();
        tokio::time::sleep(RETRY * 2).await;
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn only_the_owner_may_connect_and_a_leftover_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = bind_private(&path).unwrap();
        drop(first);
        let _second = bind_private(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::net::UnixStream::connect(&path).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
