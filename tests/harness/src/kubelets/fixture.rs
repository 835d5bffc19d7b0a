//! What all cases share: the API, the nodes, and clients everywhere.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::workload::{self, AGENTS};
use crate::agent::Agent;
use crate::kube::Api;
use crate::wait::until;

/// Where the shared clients live.
const NAMESPACE: &str = "e2e-clients";
/// Two images' worth of pods on a busy machine.
const PODS_WITHIN: Duration = Duration::from_secs(60);

/// A node, and the clients on it.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub addresses: [IpAddr; 2],
    /// A pod of it.
    pub pod: Agent,
    /// A pod on its own network.
    pub host: Agent,
}

/// Everything that outlives a case.
pub struct Fixture {
    /// An administrator's client.
    pub api: Api,
    /// The nodes, by name.
    pub nodes: Vec<Node>,
    /// A machine that is no node.
    pub outside: Agent,
    /// The cluster's folder.
    pub state: PathBuf,
}

impl Fixture {
    /// Starts a client of each kind on every node, and waits for them.
    pub fn start(state: &Path) -> Result<Self> {
        let state = state.canonicalize().context("the cluster's folder; run: make cluster-up")?;
        let api = Api::from_kubeconfig(&state.join("admin.kubeconfig"))?;
        workload::namespace(&api, NAMESPACE)?;
        for (name, on_host) in [("client", false), ("host-client", true)] {
            api.delete("DaemonSet", NAMESPACE, name, 0)?; // of an earlier run, with an earlier program
            until("the last run's clients are gone", PODS_WITHIN, || {
                let left = workload::pods(&api, NAMESPACE, name)?;
                ensure!(left.is_empty(), "{} of {name} are left", left.len());
                Ok(())
            })?;
            api.apply(&daemon_set(name, on_host))?;
        }
        let mut nodes = Vec::new();
        for object in api.list("Node", "")? {
            let name = object["metadata"]["name"].as_str().context("a node's name")?.to_owned();
            let agent = |set: &str| {
                until(&format!("{set} on {name}"), PODS_WITHIN, || {
                    let pods = workload::pods(&api, NAMESPACE, set)?;
                    let here = pods.iter().find(|pod| pod.node == name && pod.ready).context("not ready yet")?;
                    Ok(here.agent(&state))
                })
            };
            let (pod, host) = (agent("client")?, agent("host-client")?);
            nodes.push(Node { addresses: addresses(&object)?, pod, host, name });
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(nodes.len() >= 2, "the cases need two nodes");
        Ok(Self { outside: outside(&state)?, api, nodes, state })
    }
}

/// InternalIPs, IPv4 first.
fn addresses(node: &Value) -> Result<[IpAddr; 2]> {
    let all = node["status"]["addresses"].as_array().context("a node's addresses")?;
    let internal = all.iter().filter(|it| it["type"] == "InternalIP").filter_map(|it| it["address"].as_str());
    let all: Vec<IpAddr> = internal.map(str::parse).collect::<Result<_, _>>()?;
    let of =
        |v6: bool| all.iter().copied().find(|it| it.is_ipv6() == v6).context("a node without an address of a family");
    Ok([of(false)?, of(true)?])
}

fn daemon_set(name: &str, on_host: bool) -> Value {
    let mut pod = workload::pod_template(name, &[]);
    pod["spec"]["hostNetwork"] = json!(on_host);
    pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    if on_host {
        pod["spec"]["dnsPolicy"] = json!("ClusterFirstWithHostNet");
    }
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": pod},
    })
}

fn outside(state: &Path) -> Result<Agent> {
    let sockets = state.join("run").join(AGENTS);
    std::fs::create_dir_all(&sockets)?;
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster/in"));
    command.arg("outside");
    Agent::start_by("outside", command, &[], &sockets)
}
