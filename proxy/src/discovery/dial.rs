//! One connection to one replica: a unix socket, or TLS 1.3 with this node's certificate or, inside it, its token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::TrustAnchor;
use tonic::metadata::{Ascii, MetadataValue};
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

/// How this node proves itself at addresses.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// Not at all: there are only unix sockets.
    None,
    /// By a certificate: a folder with `ca.crt`, `tls.crt` and `tls.key`, read anew for each connection.
    Certificate(PathBuf),
    /// By a ServiceAccount token: its file, read anew for each stream, since the kubelet renews it.
    Token(PathBuf),
}

impl Proof {
    /// What goes with the stream's request.
    ///
    /// # Errors
    /// Where there is no token in the file.
    pub(super) async fn authorization(&self, endpoint: &Endpoint) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let (Self::Token(path), Endpoint::Tcp(_)) = (self, endpoint) else { return Ok(None) };
        let failed = || format!("--token-file {}: no token can be read", path.display());
        let token = tokio::fs::read_to_string(path).await.with_context(failed)?;
        anyhow::ensure!(!token.trim().is_empty(), "--token-file {}: it is empty", path.display());
        let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim())).with_context(failed)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Connects; `anchors` are the CAs that sign for replicas which take tokens.
///
/// # Errors
/// Where a certificate can't be read, no CA is known, or nobody answers.
pub(super) async fn dial(
    endpoint: &Endpoint,
    proof: &Proof,
    anchors: Vec<TrustAnchor<'static>>,
) -> anyhow::Result<Channel> {
    let target = match endpoint {
        Endpoint::Unix(path) => Target::from_shared(format!("unix:{}", path.display()))?,
        Endpoint::Tcp(address) => {
            let tls = match proof {
                Proof::None => anyhow::bail!("--tls-dir or --token-file is missing"),
                Proof::Certificate(dir) => tls(dir).await?,
                Proof::Token(_) if anchors.is_empty() => {
                    anyhow::bail!("no CA is known yet: ca.crt in --discovery-dir is missing or can't be read")
                }
                Proof::Token(_) => ClientTlsConfig::new().domain_name(SERVER_NAME).trust_anchors(anchors),
            };
            Target::from_shared(format!("https://{address}"))?.tls_config(tls)?
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
