//! One connection to one replica: a unix socket, an address, or a port-forward, the latter two with TLS inside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Target, Identity};

use super::forward;
use super::kube::Home;
use crate::args::Endpoint;

/// The name in every replica's certificate, whatever address it is reached at.
const SERVER_NAME: &str = "controller.sheave";

/// Where a controller's pod serves.
const PORT: u16 = 15010;

/// How both sides know each other.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    /// By the socket's file mode.
    None,
    /// By an operator's certificate, in this folder.
    Certificate(PathBuf),
    /// By a token, sent to whoever this CA (PEM) has signed for.
    Token(String),
}

/// Connects to an endpoint.
pub(super) async fn direct(endpoint: &Endpoint, proof: &Proof, patience: Duration) -> anyhow::Result<Channel> {
    let target = match endpoint {
        Endpoint::Unix(path) => Target::from_shared(format!("unix:{}", path.display()))?,
        Endpoint::Tcp(address) => Target::from_shared(format!("https://{address}"))?.tls_config(tls(proof)?)?,
    };
    connected(target.connect_timeout(patience).connect(), patience).await
}

/// Connects to a controller's pod by way of the API server and its kubelet.
pub(super) async fn forwarded(home: &Home, pod: &str, proof: &Proof, patience: Duration) -> anyhow::Result<Channel> {
    let target = Target::from_static("https://controller.sheave").tls_config(tls(proof)?)?;
    let stream = tokio::time::timeout(patience, forward::open(&home.client, &home.namespace, pod, PORT)).await;
    let stream = stream.map_err(|_| late(patience))??;
    // One connection is all there is: another would need another port-forward.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the port-forward has ended"));
        async move { stream }
    });
    connected(target.connect_with_connector(connector), patience).await
}

async fn connected(
    connecting: impl Future<Output = Result<Channel, tonic::transport::Error>>,
    patience: Duration,
) -> anyhow::Result<Channel> {
    match tokio::time::timeout(patience, connecting).await {
        Ok(connected) => connected.map_err(|error| anyhow::anyhow!(with_causes(&error))),
        Err(_) => Err(late(patience)),
    }
}

fn late(patience: Duration) -> anyhow::Error {
    anyhow::anyhow!("no connection within {} s", patience.as_secs())
}

fn tls(proof: &Proof) -> anyhow::Result<ClientTlsConfig> {
    let config = ClientTlsConfig::new().domain_name(SERVER_NAME);
    match proof {
        Proof::None => anyhow::bail!("an address needs --tls-dir or a token"),
        Proof::Token(authority) => Ok(config.ca_certificate(Certificate::from_pem(authority))),
        Proof::Certificate(dir) => {
            let (ca, certificate, key) = (read(dir, "ca.crt")?, read(dir, "tls.crt")?, read(dir, "tls.key")?);
            Ok(config.ca_certificate(Certificate::from_pem(ca)).identity(Identity::from_pem(certificate, key)))
        }
    }
}

fn read(dir: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let path = dir.join(name);
    std::fs::read(&path).with_context(|| {
        format!(
            "{} can't be read; --tls-dir is the folder `operator` that `sheave-controller init` makes",
            path.display()
        )
    })
}

/// An error with everything behind it, once each: tonic's own text is only "transport error".
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
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
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        text.push_str(
            "; the controller's certificate is not signed by this CA: it was replaced, or something else answers there",
        );
    }
    text
}
