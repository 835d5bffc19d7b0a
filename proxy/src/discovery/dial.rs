//! One connection to one replica: a unix socket, or TLS 1.3 with this node's certificate.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Target, Identity};

use crate::config::Endpoint;

/// The name in every replica's certificate, whatever address it is reached at.
const SERVER_NAME: &str = "controller.sheave";
/// How long a replica may take to accept, and then for the handshakes too: something between us may accept for it.
const CONNECT: Duration = Duration::from_secs(3);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// HTTP/2 PING interval and the time an answer may take: a replica that vanished without a word is noticed in 15 s.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Flow-control windows: a chunk and its successor, not more, so that a slow store holds little memory.
const WINDOW: u32 = 2 << 20;

/// Connects.
///
/// # Errors
/// Where a certificate can't be read, or nobody answers.
pub(super) async fn dial(endpoint: &Endpoint, tls_dir: Option<&Path>) -> anyhow::Result<Channel> {
    let target = match endpoint {
        Endpoint::Unix(path) => Target::from_shared(format!("unix:{}", path.display()))?,
        Endpoint::Tcp(address) => {
            let dir = tls_dir.context("--tls-dir is missing")?;
            Target::from_shared(format!("https://{address}"))?.tls_config(tls(dir).await?)?
        }
    };
    let target = target
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    match tokio::time::timeout(HANDSHAKE, target.connect()).await {
        Ok(connected) => connected.map_err(|error| anyhow::anyhow!(with_causes(&error))),
        Err(_) => anyhow::bail!("no handshake within {} s", HANDSHAKE.as_secs()),
    }
}

async fn tls(dir: &Path) -> anyhow::Result<ClientTlsConfig> {
    let read = async |name: &str| {
        let path = dir.join(name);
        tokio::fs::read(&path).await.with_context(|| format!("{} can't be read; see --tls-dir", path.display()))
    };
    let (ca, certificate, key) = (read("ca.crt").await?, read("tls.crt").await?, read("tls.key").await?);
    Ok(ClientTlsConfig::new()
        .domain_name(SERVER_NAME)
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(certificate, key)))
}

/// An error with everything behind it: tonic's own text is only "transport error".
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
