//! The HTTP/1.1 servers under the pages: bounded connections, bounded patience, and a busy port tried again.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::pages::{self, Body};
use super::{Admin, Listener};

/// Connections of one listener at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head.
const HEAD: Duration = Duration::from_secs(10);
/// Pause between tries at a busy port, and after a failed accept.
const RETRY: Duration = Duration::from_secs(1);

/// Serves one TCP listener until everything stops. A busy port is tried again for as long as it takes.
pub(crate) async fn serve_tcp(admin: Admin, listener: Listener) {
    let (Listener::Admin(address) | Listener::Health(address)) = listener else { return };
    let socket = patiently(&admin, &address.to_string(), || TcpListener::bind(address)).await;
    let Some(socket) = socket else { return };
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = admin.shutdown.stopped() => return,
        };
        match accepted {
            Ok((stream, _)) => connection(admin.clone(), listener.clone(), stream, slot),
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
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = admin.shutdown.stopped() => break,
        };
        match accepted {
            Ok((stream, _)) => connection(admin.clone(), listener.clone(), stream, slot),
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

fn connection<S>(admin: Admin, listener: Listener, stream: S, slot: tokio::sync::OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let _slot = slot;
        let service = service_fn(|request: Request<Incoming>| {
            let (admin, listener) = (admin.clone(), listener.clone());
            async move { Ok::<Response<Body>, Infallible>(pages::answer(&admin, &listener, &request).await) }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let serving = server.serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = serving => ended,
            _ = admin.shutdown.stopped() => return,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an admin connection ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

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
