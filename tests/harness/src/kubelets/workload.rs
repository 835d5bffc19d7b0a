//! Test pods as Kubernetes objects: their template, and Deployments of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::kube::Api;
use crate::testpod::protocol::Kind;
use crate::wait::until;

/// Folder of control sockets, in a node's folder and in every test pod.
pub const AGENTS: &str = "agents";
/// What a server pod listens on.
pub const SERVERS: &[(Kind, u16)] = &[(Kind::Tcp, 8080), (Kind::Http, 8000), (Kind::Udp, 5353)];
/// A Deployment of ten on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// A pod of ours, as the API server knows it.
#[derive(Clone, Debug)]
pub struct TestPod {
    /// Its name, which its servers answer with.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Whether it is Ready and not being deleted.
    pub ready: bool,
}

impl TestPod {
    /// The test's end of it.
    pub fn agent(&self, state: &Path) -> Agent {
        Agent::attach(&self.name, &state.join(&self.node).join(AGENTS).join(&self.name))
    }
}

/// The pods with the label `app: NAME`.
pub fn pods(api: &Api, namespace: &str, app: &str) -> Result<Vec<TestPod>> {
    let list = api.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{app}"))?;
    let pod = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array();
        let is_ready = conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True");
        TestPod {
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            node: object["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
            ready: is_ready && object["metadata"]["deletionTimestamp"].is_null(),
        }
    };
    Ok(list["items"].as_array().context("a list of pods")?.iter().map(pod).collect())
}

/// Makes a namespace, and waits for what every pod in it needs.
pub fn namespace(api: &Api, name: &str) -> Result<()> {
    api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    until("the namespace's service account", Duration::from_secs(20), || {
        api.read("ServiceAccount", name, "default").map(drop)
    })
}

/// A pod that runs the test pod's program with these servers. As process 1 it goes on after SIGTERM until its grace of five
/// seconds ends, as a server does that drains.
pub fn pod_template(app: &str, servers: &[(Kind, u16)]) -> Value {
    let mut arguments = vec![crate::testpod::ARGUMENT.to_owned(), format!("/{AGENTS}/$(NAME)"), "$(NAME)".to_owned()];
    arguments.extend(servers.iter().map(|(kind, port)| format!("{}:{port}", kind.name())));
    let mut container = json!({
        "name": "main", "image": "localhost/testpod:dev", "imagePullPolicy": "Never", "args": arguments,
        "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "volumeMounts": [{"name": AGENTS, "mountPath": format!("/{AGENTS}")}],
    });
    if servers.iter().any(|(kind, _)| *kind == Kind::Http) {
        container["readinessProbe"] = json!({"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1});
    }
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            "volumes": [{"name": AGENTS, "hostPath": {"path": format!("/cluster/{AGENTS}"), "type": "Directory"}}],
        },
    })
}

/// A Deployment of server pods, spread over the nodes.
pub struct Deployment<'a> {
    api: &'a Api,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Deployment<'a> {
    /// Makes one, and waits until all of it is ready.
    pub fn start(api: &'a Api, namespace: &'a str, name: &'a str, replicas: usize) -> Result<Self> {
        let spread = json!({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": name}}, "matchLabelKeys": ["pod-template-hash"]});
        Self::with(api, namespace, name, replicas, &json!({"topologySpreadConstraints": [spread]}))
    }

    /// Makes one whose pods have these fields in their spec (and are not spread), and waits until all of it is ready.
    pub fn with(api: &'a Api, namespace: &'a str, name: &'a str, replicas: usize, spec: &Value) -> Result<Self> {
        let mut template = pod_template(name, SERVERS);
        for (field, value) in spec.as_object().into_iter().flatten() {
            template["spec"][field] = value.clone();
        }
        api.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        }))?;
        let deployment = Self { api, namespace, name };
        deployment.wait(replicas)?;
        Ok(deployment)
    }

    /// The ready pods' names.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.pods()?.into_iter().filter(|pod| pod.ready).map(|pod| pod.name).collect())
    }

    /// All its pods, those that are on their way out among them.
    pub fn pods(&self) -> Result<Vec<TestPod>> {
        pods(self.api, self.namespace, self.name)
    }

    /// Waits until its pods are these many, all of them ready and of the newest template.
    pub fn wait(&self, replicas: usize) -> Result<()> {
        until(&format!("{replicas} pods of {}", self.name), READY_WITHIN, || {
            let object = self.api.read("Deployment", self.namespace, self.name)?;
            let status = &object["status"];
            let current = status["observedGeneration"] == object["metadata"]["generation"];
            let all = |field: &str| status[field].as_u64().unwrap_or(0) == replicas as u64;
            ensure!(current && all("replicas") && all("readyReplicas") && all("updatedReplicas"), "status {status}");
            let pods = self.pods()?;
            ensure!(pods.len() == replicas, "{} pods", pods.len());
            Ok(())
        })
    }

    /// Another number of replicas; returns when they are there.
    pub fn scale(&self, replicas: usize) -> Result<()> {
        self.api.patch("Deployment", self.namespace, self.name, "", &json!({"spec": {"replicas": replicas}}))?;
        self.wait(replicas)
    }

    /// Starts a rollout: every pod is replaced.
    pub fn restart(&self, mark: &str) -> Result<()> {
        let template = json!({"metadata": {"annotations": {"e2e/restarted": mark}}});
        self.api.patch("Deployment", self.namespace, self.name, "", &json!({"spec": {"template": template}}))
    }
}
