//! Who may subscribe over TLS: the holder of a node's certificate, for that node.

use std::path::Path;
use std::sync::Arc;

use sheave_api::proto::discovery_client::DiscoveryClient;
use sheave_api::proto::{self, from_proxy};
use tokio::sync::watch;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use super::{Nodes, Server, serve_tls};
use crate::args::InitArgs;
use crate::init::init;
use crate::metrics::Metrics;
use crate::pki::SERVER_NAME;
use crate::publish::{Publisher, Standing};
use crate::source::Relist;

fn make(dir: &Path, node: &str) {
    init(&InitArgs { dir: dir.to_owned(), node: vec![node.to_owned()], address: vec!["127.0.0.1".into()] }).unwrap();
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Subscribes as `node` with the certificate in `tls`, to a server whose CA is in `ca`. Returns the first answer.
async fn subscribe(port: u16, ca: &Path, tls: Option<&Path>, node: &str) -> Result<(), Status> {
    let mut config =
        ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(read(&ca.join("ca.crt"))));
    if let Some(tls) = tls {
        config = config.identity(Identity::from_pem(read(&tls.join("tls.crt")), read(&tls.join("tls.key"))));
    }
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap().tls_config(config).unwrap();
    let channel = endpoint.connect().await.map_err(|error| Status::unknown(error.to_string()))?;
    let hello = proto::Hello { node: node.into(), ..Default::default() };
    let hello = proto::FromProxy { message: Some(from_proxy::Message::Hello(hello)) };
    let stream = futures::StreamExt::chain(futures::stream::iter([hello]), futures::stream::pending());
    let mut updates = DiscoveryClient::new(channel).stream(stream).await?.into_inner();
    updates.message().await?.map(|_| ()).ok_or_else(|| Status::unknown("the stream ended"))
}

#[tokio::test]
async fn a_node_subscribes_with_its_own_certificate_only() {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(ours.path(), "a");
    make(theirs.path(), "a");
    let metrics = Arc::new(Metrics::new());
    let publisher = Arc::new(Publisher::new(metrics.clone()));
    publisher.publish(Vec::new(), 0, Standing { ready: true, ..publisher.standing() });
    let (_stop, stopping) = watch::channel(false);
    let (nodes, relist) = (Arc::new(Nodes::new(metrics.clone())), Arc::new(Relist::default()));
    let directory = watch::Sender::new(Arc::default()).subscribe();
    let server = Server { publisher, nodes, relist, metrics: metrics.clone(), reviewer: None, directory, stopping };
    let any = "127.0.0.1:0".parse().unwrap();
    let (address, serving) = serve_tls(server, None, any, ours.path()).await.unwrap();
    tokio::spawn(serving);

    let own = ours.path().join("nodes/a");
    subscribe(address.port(), &own, Some(&own), "a").await.unwrap();
    let other = subscribe(address.port(), &own, Some(&own), "b").await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied, "{other}");
    assert_eq!(metrics.streams_refused.with_label_values(&["identity"]).get(), 1);
    subscribe(address.port(), &own, None, "a").await.unwrap_err();
    subscribe(address.port(), &own, Some(&theirs.path().join("nodes/a")), "a").await.unwrap_err();
    let impostor = subscribe(address.port(), theirs.path(), Some(&own), "a").await.unwrap_err();
    assert_eq!(impostor.code(), Code::Unknown, "the client doesn't take another CA's server: {impostor}");
}
