//! A real Prometheus in the cluster's world, with the project's own scrape configuration and rules, as the ServiceAccount that the
//! manifests give rights to. Its data is small, and goes with it.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sheave_harness::process::tail;
use sheave_harness::wait::until;

use crate::check::SOON;
use crate::context::Context;
use crate::shell::{shell, typed};
use crate::workload;

/// Where manifests/monitoring/rbac.yaml expects the account.
pub(crate) const NAMESPACE: &str = "monitoring";
const ACCOUNT: &str = "prometheus";
/// In the world's own network, which nothing else shares.
const ADDRESS: &str = "127.0.0.1:9090";
/// What alerts wait for in the copy of the rules that `Rules::Hasty` uses.
const HASTY: &str = "        for: 20s";

/// Which rules it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// As they are shipped.
    Shipped,
    /// With 20 s in place of what each alert waits for, minutes to hours.
    Hasty,
}

/// A running Prometheus; dropped, it is killed and its data removed.
pub(crate) struct Prometheus<'a> {
    it: &'a Context<'a>,
    child: Child,
    folder: PathBuf,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended already
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder); // `down` removes what is left
    }
}

fn shipped(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/monitoring").join(name);
    fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
}

impl<'a> Prometheus<'a> {
    /// Gives the account its rights by the page's command, and starts Prometheus with its token.
    pub(crate) fn start(it: &'a Context<'a>, rules: Rules) -> Result<Self> {
        workload::namespace(&it.fixture.api, NAMESPACE)?;
        let account = json!({"name": ACCOUNT, "namespace": NAMESPACE});
        it.fixture.api.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}))?;
        typed(it, "docs/install.md", "prometheus")?;
        let folder = it.fixture.state.join("run/prometheus");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        configure(it, &folder, rules)?;
        let child = spawn(it, &folder)?;
        let mut started = Self { it, child, folder };
        until("Prometheus is ready", SOON, || {
            if let Some(status) = started.child.try_wait()? {
                bail!("it ended ({status}): {}", started.log());
            }
            curl(&[], "/-/ready").map(drop)
        })?;
        Ok(started)
    }

    /// Ends it and takes its rights and namespace away.
    pub(crate) fn end(self) -> Result<()> {
        let it = self.it;
        drop(self);
        shell(it, "world", "kubectl delete -f manifests/monitoring/rbac.yaml")?;
        it.fixture.api.delete("Namespace", "", NAMESPACE, 0)?;
        until("the namespace of Prometheus is gone", Duration::from_secs(60), || {
            let (status, _) = it.fixture.api.request("GET", &format!("/api/v1/namespaces/{NAMESPACE}"), None)?;
            ensure!(status == 404, "status {status}");
            Ok(())
        })
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        tail(&fs::read_to_string(self.it.fixture.state.join("logs/prometheus.log")).unwrap_or_default(), 15)
    }

    /// What its HTTP API answers.
    pub(crate) fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let text = curl(parameters, path)?;
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))?;
        ensure!(answer["status"] == "success", "{path} {parameters:?}: {text}");
        Ok(answer["data"].clone())
    }

    /// Series and their newest values.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.get("/api/v1/query", &[("query", expression)])?;
        data["result"].as_array().cloned().with_context(|| format!("{expression}: {data}"))
    }

    /// Series with their values of the last five minutes, as a graph shows them.
    pub(crate) fn graph(&self, expression: &str) -> Result<Vec<Value>> {
        let now = self.query("vector(time())")?;
        let now = now.first().and_then(|it| it["value"][0].as_f64()).context("Prometheus' own time")?;
        let (start, end) = (format!("{:.3}", now - 300.0), format!("{now:.3}"));
        let parameters = [("query", expression), ("start", &start), ("end", &end), ("step", "15")];
        let data = self.get("/api/v1/query_range", &parameters)?;
        data["result"].as_array().cloned().with_context(|| format!("{expression}: {data}"))
    }
}

fn curl(parameters: &[(&str, &str)], path: &str) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["-sSG", "--max-time", "20"]);
    for (name, value) in parameters {
        command.args(["--data-urlencode", &format!("{name}={value}")]);
    }
    let output = command.arg(format!("http://{ADDRESS}{path}")).output().context("curl")?;
    ensure!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// Writes configuration, rules and token. The shipped configuration is for a Prometheus in a pod, which finds the API server by
/// itself; this one is told.
fn configure(it: &Context<'_>, folder: &Path, rules: Rules) -> Result<()> {
    let server = shell(it, "world", "kubectl config view --minify -o 'jsonpath={.clusters[0].cluster.server}'")?;
    let token = folder.join("token");
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&token)?;
    fs::write(&token, account_token(it)?)?;
    let (role, found) = ("      - role: pod\n", shipped("prometheus.yml")?);
    ensure!(found.matches(role).count() == 1, "prometheus.yml has no place for the API server's address");
    let told = format!(
        "{role}        api_server: {server}\n        authorization: {{credentials_file: {}}}\n        tls_config: {{ca_file: {}}}\n",
        token.display(),
        it.fixture.state.join("pki/ca.crt").display(),
    );
    fs::write(folder.join("prometheus.yml"), found.replace(role, &told))?;
    let mut text = shipped("rules.yml")?;
    if rules == Rules::Hasty {
        let waits = text.lines().filter(|line| line.starts_with("        for: ")).count();
        ensure!(waits > 10, "{waits} alerts wait, though most should");
        let lines = text.lines().map(|line| if line.starts_with("        for: ") { HASTY } else { line });
        text = lines.collect::<Vec<_>>().join("\n") + "\n";
    }
    Ok(fs::write(folder.join("rules.yml"), text)?)
}

fn account_token(it: &Context<'_>) -> Result<String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token");
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
    let (status, answer) = it.fixture.api.request("POST", &path, Some(&request))?;
    let parsed: Value = serde_json::from_str(&answer).with_context(|| format!("{path}: {status}: {answer}"))?;
    parsed["status"]["token"].as_str().map(str::to_owned).with_context(|| format!("{path}: {status}: {answer}"))
}

fn spawn(it: &Context<'_>, folder: &Path) -> Result<Child> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/prometheus");
    let built = Command::new(script).arg("--path").output().context(".ci/prometheus")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr).trim());
    let program = Path::new(String::from_utf8(built.stdout)?.trim()).join("prometheus");
    let log = File::options().create(true).append(true).open(it.fixture.state.join("logs/prometheus.log"))?;
    // It ends with this program, however that ends.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .args(["--storage.tsdb.retention.size=64MB", "--storage.tsdb.retention.time=2h"])
        .arg(format!("--web.listen-address={ADDRESS}"))
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        .spawn()
        .context("start Prometheus")
}
