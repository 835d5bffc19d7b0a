//! The ways in: TLS on an address, with proxies' certificates or with tokens, and a unix socket (`unix` binds it).

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sheave_api::MAX_MESSAGE_BYTES;
use sheave_api::proto::discovery_server::DiscoveryServer;
use sheave_api::proto::operations_server::OperationsServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::transport::{Certificate, Identity, Server as Transport, ServerTlsConfig};

use super::{Desk, Server, handshake};
use crate::config::ConfigError;
use crate::trust::Serving;

/// A quiet connection is asked this often whether it is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// And is closed when no answer comes within this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A proxy needs one stream at a time, an operator's command a few calls.
const STREAMS_PER_CONNECTION: u32 = 8;

/// A TLS handshake takes at most this long.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

fn transport() -> Transport {
    Transport::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
}

/// What is served everywhere: proxies' streams, and operators' calls where there is a desk for them.
fn services(transport: &mut Transport, server: Server, desk: Option<Desk>) -> Router {
    let discovery = DiscoveryServer::new(server).max_decoding_message_size(MAX_MESSAGE_BYTES);
    transport.add_service(discovery).add_optional_service(desk.map(OperationsServer::new))
}

/// Resolves once the program ends.
async fn stopped(server: Server) {
    let mut stopping = server.stopping;
    // An error means that the sender is gone, which is the end as well.
    let _ = stopping.wait_for(|&stop| stop).await;
}

/// Binds at once, then serves over TLS until the program ends. Proxies must present a certificate of our CA.
pub(crate) async fn serve_tls(
    server: Server,
    desk: Option<Desk>,
    address: SocketAddr,
    tls_dir: &Path,
) -> anyhow::Result<(SocketAddr, impl Future<Output = anyhow::Result<()>> + Send + use<>)> {
    let read = |name: &str| {
        let path = tls_dir.join(name);
        let failed = |error| ConfigError(format!("{}: {error}; make it with `init`", path.display()));
        std::fs::read(&path).map_err(failed)
    };
    let identity = Identity::from_pem(read("controller.crt")?, read("controller.key")?);
    let tls = ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(Certificate::from_pem(read("ca.crt")?))
        .timeout(HANDSHAKE_TIMEOUT);
    let unusable = |error: tonic::transport::Error| {
        let (dir, error) = (tls_dir.display(), anyhow::Error::from(error));
        ConfigError(format!("--tls-dir {dir}: its files can't be used: {error:#}; make them anew with `init`"))
    };
    let mut transport = transport().tls_config(tls).map_err(unusable)?;
    let (listener, address) = bind(address).await?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let end = stopped(server.clone());
    let router = services(&mut transport, server, desk);
    Ok((address, async move {
        router.serve_with_incoming_shutdown(incoming, end).await.context("discovery over TLS failed")
    }))
}

/// The same with a certificate that may change while it serves; proxies prove themselves by tokens.
pub(crate) async fn serve_trusted(
    server: Server,
    desk: Option<Desk>,
    address: SocketAddr,
    serving: Arc<Serving>,
) -> anyhow::Result<(SocketAddr, impl Future<Output = anyhow::Result<()>> + Send + use<>)> {
    let (listener, address) = bind(address).await?;
    let incoming = handshake::incoming(listener, serving, server.metrics.clone())?;
    let end = stopped(server.clone());
    let router = services(&mut transport(), server, desk);
    Ok((address, async move {
        router.serve_with_incoming_shutdown(incoming, end).await.context("discovery over TLS failed")
    }))
}

async fn bind(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.with_context(|| format!("--listen {address}: can't be bound; free the address or give another"))?;
    let address = listener.local_addr().context("the listener has no address")?;
    Ok((listener, address))
}

/// Serves on a unix socket until the program ends. Whoever may open its file is trusted.
pub(crate) fn serve_unix(
    server: Server,
    desk: Option<Desk>,
    listener: UnixListener,
) -> impl Future<Output = anyhow::Result<()>> + Send + use<> {
    let incoming = UnixListenerStream::new(listener);
    let end = stopped(server.clone());
    let router = services(&mut transport(), server, desk);
    async move { router.serve_with_incoming_shutdown(incoming, end).await.context("discovery on the unix socket failed") }
}
