//! A small client of the Kubernetes API: JSON over HTTPS, one connection kept open.

use std::fs;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use super::http;
use crate::source::identity;

pub(super) type Connection = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a change is tried again after somebody else's change came between.
const TRIES: u32 = 10;

/// A client with one identity. Clones of its connection don't exist: requests are made one after the other.
pub struct Api {
    address: SocketAddr,
    token: String,
    tls: Arc<ClientConfig>,
    connection: Mutex<Option<Connection>>,
}

/// Where objects of a kind live.
fn path(kind: &str, namespace: &str) -> Result<String> {
    let (group, plural) = match kind {
        "Service" => ("api/v1", "services"),
        "Pod" => ("api/v1", "pods"),
        "Node" => ("api/v1", "nodes"),
        "Namespace" => ("api/v1", "namespaces"),
        "ConfigMap" => ("api/v1", "configmaps"),
        "Secret" => ("api/v1", "secrets"),
        "ServiceAccount" => ("api/v1", "serviceaccounts"),
        "Event" => ("api/v1", "events"),
        "Deployment" => ("apis/apps/v1", "deployments"),
        "DaemonSet" => ("apis/apps/v1", "daemonsets"),
        "Job" => ("apis/batch/v1", "jobs"),
        "Lease" => ("apis/coordination.k8s.io/v1", "leases"),
        "EndpointSlice" => ("apis/discovery.k8s.io/v1", "endpointslices"),
        "ServiceCIDR" => ("apis/networking.k8s.io/v1", "servicecidrs"),
        "ClusterRole" => ("apis/rbac.authorization.k8s.io/v1", "clusterroles"),
        "ClusterRoleBinding" => ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
        "Role" => ("apis/rbac.authorization.k8s.io/v1", "roles"),
        "RoleBinding" => ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
        "ValidatingWebhookConfiguration" => ("apis/admissionregistration.k8s.io/v1", "validatingwebhookconfigurations"),
        _ => bail!("the harness doesn't know where a {kind} lives"),
    };
    Ok(if namespace.is_empty() {
        format!("/{group}/{plural}")
    } else {
        format!("/{group}/namespaces/{namespace}/{plural}")
    })
}

impl Api {
    /// A client that trusts `authority` (DER) and shows `token`.
    pub fn new(address: SocketAddr, authority: &[u8], token: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.to_vec())).context("authority")?;
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address, token: token.to_owned(), tls: Arc::new(tls), connection: Mutex::default() })
    }

    /// A client as a kubeconfig of the test cluster says: one cluster by address, one user by token.
    pub fn from_kubeconfig(file: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let config: Value = serde_yaml_ng::from_str(&fs::read_to_string(file)?)?;
            let text = |value: &Value| value.as_str().map(str::to_owned).context("a field is missing");
            let cluster = &config["clusters"][0]["cluster"];
            let server = text(&cluster["server"])?;
            let address = server.strip_prefix("https://").context("not https")?.parse().context("server")?;
            let authority = CertificateDer::from_pem_file(text(&cluster["certificate-authority"])?)?;
            Self::new(address, &authority, &text(&config["users"][0]["user"]["token"])?)
        };
        read().with_context(|| format!("{}", file.display()))
    }

    /// Another client with the same identity and a connection of its own, for requests side by side.
    pub fn another(&self) -> Self {
        let (token, tls) = (self.token.clone(), Arc::clone(&self.tls));
        Self { address: self.address, token, tls, connection: Mutex::default() }
    }

    pub(super) fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let connection = ClientConnection::new(Arc::clone(&self.tls), name)?;
        Ok(BufReader::new(StreamOwned::new(connection, stream)))
    }

    /// A request as it is sent.
    pub(super) fn request_text(&self, method: &str, path: &str, body: &str) -> String {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\naccept: application/json\r\n\
             content-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        )
    }

    /// One request: status and body, whatever the status.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let request = self.request_text(method, path, &body.map(Value::to_string).unwrap_or_default());
        // A kept connection may have been closed meanwhile (the server was restarted, say): then once more on a new one.
        if let Some(connection) = kept.take()
            && let Ok(answer) = exchange(connection, &request, &mut kept)
        {
            return Ok(answer);
        }
        let connection = self.connect().with_context(|| format!("API server at {}", self.address))?;
        exchange(connection, &request, &mut kept).with_context(|| format!("{method} {path}"))
    }

    fn expect(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let (status, answer) = self.request(method, path, body)?;
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status}: {answer}");
        }
        Ok(answer)
    }

    /// GET, as text.
    pub fn get_text(&self, path: &str) -> Result<String> {
        self.expect("GET", path, None)
    }

    /// GET; anything but success is an error. Answers that are no JSON come back as a string.
    pub fn get(&self, path: &str) -> Result<Value> {
        let text = self.get_text(path)?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The object as the server has it.
    pub fn read(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        self.get(&format!("{}/{name}", path(kind, namespace)?))
    }

    /// All objects of a kind, in a namespace or (empty) everywhere.
    pub fn list(&self, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        let list = self.get(&path(kind, namespace)?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Changes fields of an object, or of one of its subresources (`/status`, or nothing), by a merge patch.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, subresource: &str, change: &Value) -> Result<()> {
        let path = format!("{}/{name}{subresource}", path(kind, namespace)?);
        self.expect("PATCH", &path, Some(change)).map(drop)
    }

    /// Creates or updates an object, and its status where one is given.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let (kind, namespace, name) = identity(object)?;
        let collection = path(kind, namespace)?;
        let (status, answer) = self.request("POST", &collection, Some(object))?;
        match status {
            201 => {}
            // 409: it exists. 422 comes first where what exists has taken the very address that is asked for again.
            409 | 422 if self.request("GET", &format!("{collection}/{name}"), None)?.0 == 200 => {
                self.replace(kind, &format!("{collection}/{name}"), object)?;
            }
            _ => bail!("POST {collection}: {status}: {answer}"),
        }
        if object["status"].is_object() {
            self.write_status(&format!("{collection}/{name}"), &object["status"])?;
        }
        Ok(())
    }

    fn replace(&self, kind: &str, path: &str, object: &Value) -> Result<()> {
        self.change(path, path, |current| {
            for field in ["labels", "annotations"] {
                current["metadata"][field] = object["metadata"][field].clone();
            }
            // A pod's spec can't change; everything else that a test gives replaces what was there.
            let fields = object.as_object().into_iter().flatten();
            for (field, value) in fields.filter(|(field, _)| !["metadata", "status"].contains(&field.as_str())) {
                if kind != "Pod" || field != "spec" {
                    current[field] = value.clone();
                }
            }
        })
    }

    fn write_status(&self, path: &str, status: &Value) -> Result<()> {
        self.change(path, &format!("{path}/status"), |current| {
            for (field, value) in status.as_object().into_iter().flatten() {
                current["status"][field] = value.clone();
            }
        })
    }

    /// Reads, changes and writes, again where somebody else wrote in between.
    fn change(&self, read: &str, write: &str, change: impl Fn(&mut Value)) -> Result<()> {
        for _ in 0..TRIES {
            let mut current = self.get(read)?;
            change(&mut current);
            let (status, answer) = self.request("PUT", write, Some(&current))?;
            match status {
                200 | 201 => return Ok(()),
                409 => {}
                _ => bail!("PUT {write}: {status}: {answer}"),
            }
        }
        bail!("PUT {write}: somebody else changed it {TRIES} times in between")
    }

    /// Deletes with a grace period; an object that is not there is fine.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str, grace: u32) -> Result<()> {
        let path = format!("{}/{name}", path(kind, namespace)?);
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace});
        let (status, answer) = self.request("DELETE", &path, Some(&options))?;
        match status {
            200 | 202 | 404 => Ok(()),
            _ => bail!("DELETE {path}: {status}: {answer}"),
        }
    }
}

/// One request and its answer; a connection that served it is kept for the next.
fn exchange(mut connection: Connection, request: &str, kept: &mut Option<Connection>) -> Result<(u16, String)> {
    connection.get_mut().write_all(request.as_bytes())?;
    connection.get_mut().flush()?;
    let answer = http::read(&mut connection)?;
    *kept = Some(connection);
    Ok(answer)
}
