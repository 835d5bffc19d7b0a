//! Parts of the cluster fail under load: no connection to an endpoint that lives fails, and soon after the end of a fault every
//! node is programmed to the current state.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::{holds_for, until};

use crate::check::{self, SOON};
use crate::context::{Case, Context, Service, case, sheave};
use crate::fixture::Node;
use crate::shell::{self, shell};
use crate::traffic::Traffic;
use crate::workload::{self, Deployment, SERVERS};
use crate::{nodes, serving};

pub(crate) const CASES: &[Case] = &[
    case("the_api_server_is_gone_for_a_minute_while_a_pod_dies", api_server_gone).long(),
    case("etcd_is_restarted", etcd_restarted).long(),
    case("containerd_is_restarted_on_every_node", containerd_restarted).long(),
    sheave("both_controllers_are_deleted_at_once", controllers_deleted).long(),
    sheave("a_proxy_runs_out_of_memory", out_of_memory).long(),
    sheave("the_disk_is_full_when_a_snapshot_is_written", disk_full).long(),
];

/// After a fault, until every node is programmed to what the API has.
pub(crate) const CURRENT: Duration = Duration::from_secs(5);
/// As long as the issue of it has it.
const OUTAGE: Duration = Duration::from_secs(60);
/// A program of the cluster is back, on a loaded machine.
const BACK: Duration = Duration::from_secs(60);

/// What every fault happens to: a Service with pods on every node.
pub(crate) struct Stage<'a> {
    pub(crate) web: Deployment<'a>,
    pub(crate) service: Service,
}

impl<'a> Stage<'a> {
    pub(crate) fn set(it: &'a Context<'_>) -> Result<Self> {
        Ok(Self { web: it.deployment("web", 4)?, service: it.service("web", "NodePort")? })
    }

    /// Every node sends to exactly these pods, soon.
    pub(crate) fn current(&self, it: &Context<'_>, names: &[String]) -> Result<()> {
        it.nodes().iter().try_for_each(|node| self.current_on(node, names))
    }

    /// One node does, soon.
    pub(crate) fn current_on(&self, node: &Node, names: &[String]) -> Result<()> {
        let mut targets = self.service.sockets(80).into_iter();
        targets.try_for_each(|target| check::served_within(CURRENT, &node.pod, Kind::Tcp, target, names))
    }

    /// Which of these pods are there still. Of pods that are about as old as each other, scaling down takes any.
    pub(crate) fn left_of(&self, names: &[String]) -> Result<Vec<String>> {
        let there = self.web.names()?;
        Ok(names.iter().filter(|name| there.contains(name)).cloned().collect())
    }

    /// A change is followed on every node, with pods that go and pods that come.
    pub(crate) fn follows(&self, it: &Context<'_>) -> Result<()> {
        for replicas in [6, 4] {
            self.web.scale(replicas)?;
            self.current(it, &self.web.names()?)?;
        }
        Ok(())
    }
}

/// Nothing but time passes while something is gone.
fn meanwhile(span: Duration) {
    std::thread::sleep(span);
}

fn api_is_back(it: &Context<'_>) -> Result<()> {
    until("the API server is back", BACK, || it.fixture.api.get_text("/readyz").map(drop))
}

fn api_server_gone(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let mortal = it.service("mortal", "ClusterIP")?;
    let both: Vec<String> = it.nodes().iter().map(|node| format!("mortal-{}", node.name)).collect();
    for (node, name) in it.nodes().iter().zip(&both) {
        let mut pod = workload::pod_template("mortal", SERVERS);
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(it.namespace);
        pod["spec"]["nodeName"] = json!(node.name);
        pod["spec"]["restartPolicy"] = json!("Never");
        it.fixture.api.apply(&pod)?;
    }
    let (first, last) = (&it.nodes()[0].pod, it.nodes().len() - 1);
    check::served_by(first, Kind::Tcp, mortal.sockets(80)[0], &both)?;
    let victim = nodes::container(it, &it.namespace, &both[last])?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    shell::service(it, "stop", "n1", "kube-apiserver")?;
    let outage = || {
        meanwhile(OUTAGE / 4);
        nodes::kill(it, &it.nodes()[last].name, &victim)?;
        meanwhile(OUTAGE * 3 / 4);
        Ok(())
    };
    let gone: Result<()> = outage();
    shell::service(it, "start", "n1", "kube-apiserver")?;
    gone?;
    api_is_back(it)?;
    until("the dead pod is known to be dead", BACK, || {
        let ready: Vec<_> = workload::pods(&it.fixture.api, &it.namespace, "mortal")?;
        ensure!(ready.iter().filter(|pod| pod.ready).count() == both.len() - 1, "{ready:?}");
        Ok(())
    })?;
    let survivors: Vec<String> = both[..last].to_vec();
    for node in it.nodes() {
        check::served_within(CURRENT, &node.pod, Kind::Tcp, mortal.sockets(80)[0], &survivors)?;
    }
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

fn etcd_restarted(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    shell::service(it, "stop", "world", "etcd")?;
    meanwhile(Duration::from_secs(5));
    shell::service(it, "start", "world", "etcd")?;
    api_is_back(it)?;
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

fn containerd_restarted(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    for node in it.nodes() {
        shell::service(it, "restart", &node.name, "containerd")?;
    }
    for node in it.nodes() {
        let answers = || shell(it, &node.name, "ctr version");
        until(&format!("containerd of {} is back", node.name), BACK, || answers().map(drop))?;
    }
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

fn controllers_deleted(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    let old =
        shell(it, "world", "kubectl -n sheave-system get pods -l app.kubernetes.io/name=sheave-controller -o name")?;
    ensure!(old.lines().count() == 2, "two controllers wanted: {old}");
    shell(
        it,
        "world",
        "kubectl -n sheave-system delete pods -l app.kubernetes.io/name=sheave-controller --grace-period=0 --force",
    )?;
    shell::ready(it)?;
    let new =
        shell(it, "world", "kubectl -n sheave-system get pods -l app.kubernetes.io/name=sheave-controller -o name")?;
    ensure!(old.lines().all(|pod| !new.contains(pod)), "not all are new: {old}, {new}");
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

/// The proxy's container gets a limit a little above what it uses, and company that eats the rest; the kernel is told to end the
/// proxy first.
fn out_of_memory(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let node = &it.nodes()[1];
    let pod = nodes::proxy_pod(it, &node.name)?;
    let before = nodes::restarts(it, "sheave-system", &pod)?;
    let container = nodes::container(it, "sheave-system", &pod)?;
    let traffic = Traffic::start(it, &stage.service, &names)?.though_proxies_end();
    let eat = format!(
        r#"pid=$(ctr -n k8s.io task ls | awk '$1 == "{container}" {{ print $2 }}')
        group=$(awk -F: '$2 == "memory" {{ print $3 }}' /proc/$pid/cgroup) limit=memory.limit_in_bytes used=memory.usage_in_bytes folder=/sys/fs/cgroup/memory
        if [ -z "$group" ]; then group=$(awk -F: '{{ print $3 }}' /proc/$pid/cgroup) limit=memory.max used=memory.current folder=/sys/fs/cgroup; fi
        echo 1000 >/proc/$pid/oom_score_adj
        echo $(($(<$folder$group/$used) + 8388608)) >$folder$group/$limit
        (echo $BASHPID >$folder$group/cgroup.procs; exec tail /dev/zero) || true"#
    );
    shell(it, &node.name, &eat)?;
    until("the proxy was ended for lack of memory, and is ready again", BACK, || {
        let status = nodes::container_status(it, "sheave-system", &pod)?;
        ensure!(nodes::restarts(it, "sheave-system", &pod)? == before + 1 && status["ready"] == true, "{status}");
        ensure!(status["lastState"]["terminated"]["reason"] == "OOMKilled", "{status}");
        Ok(())
    })?;
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

/// A small disk instead of the node's, for as long as this lives.
struct SmallDisk<'a> {
    it: &'a Context<'a>,
    node: &'a str,
}

impl<'a> SmallDisk<'a> {
    fn mount(it: &'a Context<'_>, node: &'a str) -> Result<Self> {
        shell(it, node, "mount -t tmpfs -o size=1m tmpfs /var/lib/sheave")?;
        let disk = Self { it, node };
        disk.restart_proxy()?;
        Ok(disk)
    }

    /// A container sees what is mounted when it starts.
    fn restart_proxy(&self) -> Result<()> {
        let pod = nodes::proxy_pod(self.it, self.node)?;
        shell(self.it, "world", &format!("kubectl -n sheave-system delete pod {pod}"))?;
        shell::ready(self.it)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let back = shell(self.it, self.node, "umount --lazy /var/lib/sheave").and_then(|_| self.restart_proxy());
        if let Err(error) = back {
            println!("    {}: its disk isn't back: {error:#}", self.node);
        }
    }
}

fn disk_full(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let node = &it.nodes()[1];
    let small = SmallDisk::mount(it, &node.name)?;
    let snapshots =
        || shell(it, &node.name, "find /var/lib/sheave -name 'snapshot*' -newer /var/lib/sheave/full -size +0");
    let errors = || -> Result<f64> { Ok(serving::proxy(node.addresses[0])?.sum("sheave_disk_errors_total", &[])) };
    let traffic = Traffic::start(it, &stage.service, &names)?;
    let before = errors()?;
    shell(it, &node.name, "! cat /dev/zero >/var/lib/sheave/full 2>/dev/null")?;
    stage.follows(it)?;
    until("the proxy counts what it could not save", SOON, || {
        ensure!(errors()? > before, "{before}");
        Ok(())
    })?;
    let metrics = serving::proxy(node.addresses[0])?;
    let same = metrics.sum("sheave_revision_received", &[]) == metrics.sum("sheave_revision_applied", &[]);
    ensure!(same, "{:?}", metrics.lines("sheave_revision_"));
    shell(it, &node.name, ": >/var/lib/sheave/full")?;
    until("the snapshot is saved once there is room", SOON, || {
        ensure!(!snapshots()?.is_empty(), "none newer than the end of the fault");
        Ok(())
    })?;
    let settled = errors()?;
    holds_for("no more errors", Duration::from_secs(2), || {
        ensure!(errors()? == settled, "more than {settled}");
        Ok(())
    })?;
    stage.follows(it)?;
    traffic.unharmed(&names)?;
    drop(small);
    let target = SocketAddr::new(stage.service.cluster_ips[0], 80);
    check::served_by(&node.pod, Kind::Tcp, target, &names).context("on its own disk again")
}
