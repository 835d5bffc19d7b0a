//! A validating admission webhook over HTTPS: it allows every object but those labelled [`REFUSE`], and says its name in each answer
//! (admission.k8s.io/v1).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::crypto::ring;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

/// The label, with any value, of an object that is refused.
pub const REFUSE: &str = "e2e/refuse";

/// Serves from now on, on every address.
pub(super) fn listen(name: &str, port: u16, certificate: &str, key: &str) -> Result<()> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).context("certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("key")?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .context("certificate and key")?;
    let (config, name) = (Arc::new(config), Arc::<str>::from(name));
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).context("webhook")?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, name) = (Arc::clone(&config), Arc::clone(&name));
            // A client that breaks off is the client's business.
            std::thread::spawn(move || serve(stream, config, &name));
        }
    });
    Ok(())
}

/// One review, and the end of the connection: each is another chance for another pod.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, name: &str) -> Result<()> {
    let mut reader = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let mut length = 0;
    loop {
        let mut line = String::new();
        anyhow::ensure!(reader.read_line(&mut line)? > 0, "no request");
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().context("content-length")?;
        }
    }
    let mut body = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut body)?;
    let answer = review(&serde_json::from_slice(&body)?, name).to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
    let stream = reader.get_mut();
    stream.write_all(format!("{head} {}\r\n\r\n{answer}", answer.len()).as_bytes())?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}

fn review(asked: &Value, name: &str) -> Value {
    let request = &asked["request"];
    let refused = !request["object"]["metadata"]["labels"][REFUSE].is_null();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {"uid": request["uid"], "allowed": !refused, "status": {"code": 403, "message": format!("asked {name}")}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_labelled_is_refused_by_name() {
        let asked = |labels: Value| json!({"request": {"uid": "7", "object": {"metadata": {"labels": labels}}}});
        let answer = review(&asked(json!({REFUSE: "yes"})), "web-1");
        assert_eq!(
            answer["response"],
            json!({"uid": "7", "allowed": false, "status": {"code": 403, "message": "asked web-1"}})
        );
        assert_eq!(review(&asked(json!({"a": "b"})), "web-1")["response"]["allowed"], true);
        assert_eq!(review(&asked(Value::Null), "web-1")["response"]["allowed"], true);
    }
}
