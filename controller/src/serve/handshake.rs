//! TLS handshakes with a certificate that may change: tonic's own listener reads one at the start and keeps it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::version::TLS13;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use super::listen::HANDSHAKE_TIMEOUT;
use crate::metrics::Metrics;
use crate::trust::Serving;

/// Handshakes at a time; a signature costs 50 us of a core, so that more only wait for each other.
const AT_A_TIME: usize = 256;

/// Before the next try when no connection can be accepted, because descriptors ran out.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections whose handshake is done. The task behind it ends when the stream is dropped.
pub(super) fn incoming(
    listener: TcpListener,
    serving: Arc<Serving>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<ReceiverStream<io::Result<TlsStream<TcpStream>>>> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&TLS13]).context("TLS 1.3 can't be used")?;
    let mut config = config.with_no_client_auth().with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Resuming would let a proxy go on with a certificate that is no longer shown.
    config.send_tls13_tickets = 0;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (ready, stream) = mpsc::channel(1);
    tokio::spawn(accept(listener, acceptor, ready, metrics));
    Ok(ReceiverStream::new(stream))
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
    metrics: Arc<Metrics>,
) {
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    loop {
        // Never closed.
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "no connection can be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, ready, metrics) = (acceptor.clone(), ready.clone(), metrics.clone());
        tokio::spawn(async move {
            let _turn = turn;
            // Without it small messages wait; where it can't be set they do.
            let _ = stream.set_nodelay(true);
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                // Nobody takes it once the program ends.
                Ok(stream) => drop(ready.send(Ok(stream)).await),
                Err(error) => {
                    metrics.handshakes_failed.inc();
                    debug!(%peer, %error, "a TLS handshake failed");
                }
            }
        });
    }
}
