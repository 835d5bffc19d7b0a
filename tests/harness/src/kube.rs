//! A real API server and its etcd in the test world, and what a kubelet, a cloud and an operator write to them.

mod api;
pub mod certificates;
pub(crate) mod http;
pub mod tokens;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::address::{ROUTER, SERVICE_CIDRS};
use crate::process::{Place, Process};
use crate::source::Source;
use crate::wait::until;
use crate::world::World;

pub use api::Api;
pub use watch::Watch;

/// Where the API server listens, in the router's namespace.
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
/// An API server on a loaded machine with two cores takes 3 s; a cold one more.
const START_WITHIN: Duration = Duration::from_secs(60);
/// The tokens of the static token file; nothing outside the test world can reach what they open.
const ADMIN_TOKEN: &str = "admin-of-the-test-world";
const CONTROLLER_TOKEN: &str = "controller-of-the-test-world";
/// The namespace of the controller's lease.
pub const SYSTEM: &str = "sheave-system";

/// A running control plane.
pub struct Kube {
    /// An administrator's client.
    pub api: Api,
    place: Place,
    programs: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
    etcd: Mutex<Option<Process>>,
    server: Mutex<Option<Process>>,
    kubeconfig: PathBuf,
}

/// The folder with etcd, kube-apiserver and kube-controller-manager: what `.ci/kube --path` finds.
pub fn programs() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("KUBEBUILDER_ASSETS") {
        return Ok(folder.into());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/kube");
    let output = Command::new(&script).arg("--path").output().with_context(|| format!("{}", script.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

impl Kube {
    /// Starts etcd and an API server in the world's router namespace, and waits until it is ready.
    pub fn start(world: &World) -> Result<Self> {
        let folder = world.run.folder.join("kube");
        fs::create_dir_all(&folder)?;
        let address = SocketAddr::from((ROUTER.v4, PORT));
        let authority = certificates::write(&folder, address.ip())?;
        let tokens = format!("{ADMIN_TOKEN},admin,1,system:masters\n{CONTROLLER_TOKEN},sheave-controller,2,\n");
        fs::write(folder.join("tokens.csv"), tokens)?;
        let kube = Self {
            api: Api::new(address, &authority, ADMIN_TOKEN)?,
            place: world.router.clone(),
            programs: programs()?,
            kubeconfig: folder.join("controller.kubeconfig"),
            folder,
            logs: world.run.logs(),
            etcd: Mutex::default(),
            server: Mutex::default(),
        };
        kube.start_etcd()?;
        kube.start_server()?;
        kube.write_kubeconfig(&kube.kubeconfig, address, CONTROLLER_TOKEN)?;
        kube.namespace(SYSTEM)?;
        for object in rights() {
            kube.apply(&object)?;
        }
        Ok(kube)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(&self.folder);
        command
    }

    fn start_etcd(&self) -> Result<()> {
        let mut command = self.command("etcd");
        command.args(["--name=test", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn"]);
        command.arg(format!("--listen-client-urls={ETCD}")).arg(format!("--advertise-client-urls={ETCD}"));
        command
            .args(["--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]);
        command.arg("--initial-cluster=test=http://127.0.0.1:2380");
        let process = Process::start("etcd", command, &self.place, &self.logs)?;
        *self.etcd.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Starts the API server (again) and waits until it is ready.
    pub fn start_server(&self) -> Result<()> {
        let mut command = self.command("kube-apiserver");
        command.arg(format!("--etcd-servers={ETCD}")).arg(format!("--service-cluster-ip-range={SERVICE_CIDRS}"));
        command.arg(format!("--bind-address={}", ROUTER.v4)).arg(format!("--advertise-address={}", ROUTER.v4));
        command.arg(format!("--secure-port={PORT}"));
        command.args([
            "--tls-cert-file=server.crt",
            "--tls-private-key-file=server.key",
            "--token-auth-file=tokens.csv",
        ]);
        command.args(["--service-account-issuer=https://test", "--service-account-key-file=accounts.pub"]);
        command.args(["--service-account-signing-key-file=accounts.key", "--authorization-mode=RBAC"]);
        command.args(["--endpoint-reconciler-type=none"]);
        command.arg("--disable-admission-plugins=ServiceAccount,TaintNodesByCondition");
        let process = Process::start("kube-apiserver", command, &self.place, &self.logs)?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        until("API server ready", START_WITHIN, || {
            if let Some(server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                let ended = server.still_runs();
                if ended.is_err() {
                    return Ok(ended); // no use in waiting on
                }
            }
            self.api.get("/readyz/ping")?;
            let body = self.api.get_text("/readyz")?;
            if body == "ok" { Ok(Ok(())) } else { bail!("/readyz: {body}") }
        })?
    }

    /// Ends the API server with SIGKILL; etcd stays.
    pub fn stop_server(&self) -> Result<()> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        server.context("the API server is not running")?.kill()
    }

    /// Whether the API server runs.
    pub fn serves(&self) -> bool {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Makes etcd forget every revision but the newest, so that older watches can't be resumed.
    pub fn compact(&self) -> Result<()> {
        // etcd's gRPC gateway; base64 of the key "a".
        let post = |path: &str, body: &str| {
            self.place.netns.output("curl", &["-sf", "-X", "POST", &format!("{ETCD}{path}"), "-d", body])
        };
        let range: Value = serde_json::from_str(&post("/v3/kv/range", r#"{"key":"YQ=="}"#)?)?;
        let revision = range["header"]["revision"].as_str().context("etcd's revision")?.to_owned();
        post("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#)).map(drop)
    }

    /// Starts the real endpoint-slice controller, which ends when the returned process is dropped.
    pub fn endpoint_slice_controller(&self) -> Result<Process> {
        let kubeconfig = self.folder.join("manager.kubeconfig");
        self.write_kubeconfig(&kubeconfig, SocketAddr::from((ROUTER.v4, PORT)), ADMIN_TOKEN)?;
        let mut command = self.command("kube-controller-manager");
        command.args(["--controllers=endpointslice-controller", "--leader-elect=false", "--secure-port=0"]);
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        Process::start("kube-controller-manager", command, &self.place, &self.logs)
    }

    /// A kubeconfig with the controller's rights that goes to the API server by way of `address`.
    pub fn kubeconfig_through(&self, address: SocketAddr) -> Result<PathBuf> {
        let path = self.folder.join(format!("controller-{}.kubeconfig", address.port()));
        self.write_kubeconfig(&path, address, CONTROLLER_TOKEN)?;
        Ok(path)
    }

    /// An administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> Result<PathBuf> {
        let path = self.folder.join("admin.kubeconfig");
        self.write_kubeconfig(&path, self.address(), ADMIN_TOKEN)?;
        Ok(path)
    }

    /// Where the API server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((ROUTER.v4, PORT))
    }

    fn write_kubeconfig(&self, path: &Path, address: SocketAddr, token: &str) -> Result<()> {
        let authority = self.folder.join("ca.crt");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test",
                "cluster": {"server": format!("https://{address}"), "certificate-authority": authority}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        fs::write(path, serde_yaml_ng::to_string(&config)?).with_context(|| format!("{}", path.display()))
    }
}

/// The rights that the controller needs, and no others, so that a call that goes beyond them fails here first.
fn rights() -> [Value; 4] {
    let read = json!(["get", "list", "watch"]);
    let role = |kind: &str, rules: Value| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": "sheave-controller", "namespace": if kind == "Role" { SYSTEM } else { "" }},
            "rules": rules})
    };
    let binding = |kind: &str, role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": "sheave-controller", "namespace": if role == "Role" { SYSTEM } else { "" }},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "sheave-controller"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "sheave-controller"}]})
    };
    [
        role(
            "ClusterRole",
            json!([
                {"apiGroups": [""], "resources": ["services", "pods", "nodes", "namespaces"], "verbs": read},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
                {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": read},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
                {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
            ]),
        ),
        binding("ClusterRoleBinding", "ClusterRole"),
        role(
            "Role",
            json!([
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
                    "verbs": ["get", "list", "create", "update", "delete"]},
                {"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["get", "create", "update"]},
            ]),
        ),
        binding("RoleBinding", "Role"),
    ]
}

impl Source for Kube {
    fn name(&self) -> &'static str {
        "kube"
    }

    fn arguments(&self) -> Vec<String> {
        let kubeconfig = self.kubeconfig.display().to_string();
        ["--source", "kube", "--kubeconfig", &kubeconfig, "--lease-namespace", SYSTEM].map(str::to_owned).to_vec()
    }

    fn namespace(&self, name: &str) -> Result<()> {
        self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
    }

    fn apply(&self, object: &Value) -> Result<()> {
        self.api.apply(object)
    }

    fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.api.delete(kind, namespace, name, 0)
    }

    fn terminate(&self, namespace: &str, name: &str, grace: u32) -> Result<()> {
        self.api.delete("Pod", namespace, name, grace)
    }
}
