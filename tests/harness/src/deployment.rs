//! Pods that come and go together: what a Deployment, its controller and the kubelets would do to objects and processes.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::objects::{self, Phase, READY};
use crate::pod::Pod;
use crate::testpod::protocol::Kind;

/// The servers of ordinary test pods.
pub const SERVERS: &[(Kind, u16)] = &[(Kind::Tcp, 8080), (Kind::Udp, 5353), (Kind::Http, 8000), (Kind::Hello, 8081)];

/// A group of pods with one name and one set of labels.
pub struct Deployment {
    cluster: Arc<Cluster>,
    namespace: String,
    name: String,
    labels: Value,
    members: Vec<Member>,
    made: usize,
}

/// One pod, its process and its object.
pub struct Member {
    /// The process.
    pub pod: Pod,
    labels: Value,
    phase: Phase,
}

impl Deployment {
    /// No pods yet; they will carry the label `app: NAME`.
    pub fn new(cluster: &Arc<Cluster>, namespace: &str, name: &str) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: json!({"app": name}),
            members: Vec::new(),
            made: 0,
        }
    }

    /// The selector that finds its pods.
    pub fn selector(&self) -> Value {
        self.labels.clone()
    }

    /// Its pods, oldest first.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The names its pods answer with.
    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|member| member.pod.name.clone()).collect()
    }

    /// Adds pods in turn on every node, or takes the newest away, until there are `count`.
    pub fn scale(&mut self, count: usize) -> Result<()> {
        while self.members.len() > count {
            self.delete(self.members.len() - 1)?;
        }
        while self.members.len() < count {
            let node = 1 + self.made % self.cluster.world.nodes.len();
            self.add(node, SERVERS)?;
        }
        Ok(())
    }

    /// Starts a pod with these servers on a node (from 1) and writes its object as Running and Ready.
    pub fn add(&mut self, node: usize, servers: &[(Kind, u16)]) -> Result<usize> {
        let name = self.next_name();
        let pod = self.cluster.world.node(node).pod(&name, servers)?;
        self.adopt(pod)
    }

    /// The same on the node's own network.
    pub fn add_on_host(&mut self, node: usize, servers: &[(Kind, u16)]) -> Result<usize> {
        let name = self.next_name();
        let pod = self.cluster.world.node(node).host_pod(&name, servers)?;
        self.adopt(pod)
    }

    fn next_name(&mut self) -> String {
        self.made += 1;
        format!("{}-{}-{}", self.namespace, self.name, self.made)
    }

    fn adopt(&mut self, pod: Pod) -> Result<usize> {
        self.members.push(Member { pod, labels: self.labels.clone(), phase: READY });
        let index = self.members.len() - 1;
        self.write(index)?;
        Ok(index)
    }

    fn write(&self, index: usize) -> Result<()> {
        let member = &self.members[index];
        self.cluster.apply(&objects::pod(&self.namespace, &member.pod, &member.labels, member.phase))
    }

    /// Writes another phase or readiness of a pod.
    pub fn set_phase(&mut self, index: usize, phase: Phase) -> Result<()> {
        self.members[index].phase = phase;
        self.write(index)
    }

    /// Replaces a pod's labels.
    pub fn relabel(&mut self, index: usize, labels: &Value) -> Result<()> {
        self.members[index].labels = labels.clone();
        self.write(index)
    }

    /// Sets a pod's deletionTimestamp; it goes on serving until [`Deployment::delete`].
    pub fn terminate(&self, index: usize, grace: u32) -> Result<()> {
        self.cluster.source.terminate(&self.namespace, &self.members[index].pod.name, grace)
    }

    /// Removes a pod's object and ends its process.
    pub fn delete(&mut self, index: usize) -> Result<()> {
        let member = self.members.remove(index);
        self.cluster.remove("Pod", &self.namespace, &member.pod.name)
    }

    /// Kills a pod's process; its object stays as it is, as when a container crashes.
    pub fn kill(&self, index: usize) -> Result<()> {
        self.members[index].pod.agent.kill()
    }

    /// How often each pod's servers of this kind were asked, by name, from the servers' own records.
    pub fn asked(&self, kind: Kind) -> Result<Vec<(String, u64)>> {
        let count = |member: &Member| -> Result<(String, u64)> {
            let records = member.pod.agent.records()?;
            let total = records.iter().filter(|it| it.kind == kind).flat_map(|it| it.peers.values()).sum();
            Ok((member.pod.name.clone(), total))
        };
        self.members.iter().map(count).collect()
    }

    /// The position of the pod with this name.
    pub fn position(&self, name: &str) -> Result<usize> {
        self.members.iter().position(|member| member.pod.name == name).with_context(|| format!("no pod {name}"))
    }
}
