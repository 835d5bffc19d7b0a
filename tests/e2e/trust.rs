//! Trust by the API server: whose tokens open discovery, and how nodes find replicas when addresses, CA and files change.
//!
//! The harness stands in for kubelets: it gets tokens for Pod objects and copies the ConfigMap into each node's folder.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sheave_harness::address::ROUTER;
use sheave_harness::kube::{Kube, SYSTEM, tokens};
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;
use sheave_harness::world::Node;
use sheave_harness::{metrics, objects};

use crate::case::{Case, Proof, kube};
use crate::check::{SOON, question, served_within};
use crate::context::{Context, From, To, sockets};

/// Programs are restarted: counters begin anew, and the cases before these have proved the path.
const RESTARTED: Proof = Proof::Own("programs are restarted, and count from nought");

pub(crate) const CASES: &[Case] = &[
    kube("only_a_nodes_own_token_opens_discovery", tokens).proof(RESTARTED),
    kube("nodes_find_replicas_through_wrong_files_a_new_ca_and_new_addresses", changes).proof(RESTARTED),
];

/// The audience that tokens have to be for.
const AUDIENCE: &str = "sheave-discovery";
/// Proxies try again after at most 6 s, at each of two replicas; a debug build may take as long to start.
const CONNECTED: Duration = Duration::from_secs(30);
/// A new CA signs after 20 s at the earliest, and is looked at every 5 s.
const INTRODUCED: Duration = Duration::from_secs(60);

/// Replicas that take tokens, and nodes that have them.
pub(crate) struct ByTokens<'a> {
    it: &'a Context,
    kube: &'a Kube,
    folder: PathBuf,
}

impl<'a> ByTokens<'a> {
    /// Starts both replicas and every proxy anew, with nothing in the proxies' folders but tokens; the ConfigMap comes later.
    pub(crate) fn start(it: &'a Context) -> Result<Self> {
        let kube = it.kube.as_deref().context("this case needs an API server")?;
        let folder = it.cluster.world.run.folder.join(format!("trust-{}", it.path().name()));
        let all = Self { it, kube, folder };
        it.cluster.kill_controller(0)?;
        all.forget()?;
        for node in &it.cluster.world.nodes {
            fs::create_dir_all(all.mounted(node))?;
            kube.proxy_pod(&node.name)?;
            all.give(node, &all.token(node, AUDIENCE)?)?;
            all.start_proxy(node)?;
        }
        for replica in 0..2 {
            it.cluster.start_controller_by_tokens(replica, address(15_410, replica))?;
        }
        until("both replicas are in the ConfigMap", CONNECTED, || all.lists(15_410))?;
        for node in &it.cluster.world.nodes {
            until("the proxy runs, and finds no replica without any file", CONNECTED, || {
                let connected = metrics::proxy(node)?.sum("sheave_stream_connected", &[]);
                ensure!(connected == 0.0, "{} has a stream", node.name);
                Ok(())
            })?;
            all.mount(node)?;
            all.connected(node)?;
        }
        Ok(all)
    }

    /// Takes away what an earlier case has left of trust, while no controller runs.
    fn forget(&self) -> Result<()> {
        for (kind, name) in [("ConfigMap", "sheave-discovery"), ("Secret", "sheave-ca")] {
            if self.kube.api.read(kind, SYSTEM, name).is_ok() {
                self.kube.api.delete(kind, SYSTEM, name, 0)?;
            }
        }
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        for node in &self.it.cluster.world.nodes {
            self.it.cluster.kill_proxy(node)?;
            let remembered = node.state.join("discovery");
            if remembered.exists() {
                fs::remove_file(remembered)?;
            }
        }
        Ok(())
    }

    /// Everything as it was before the case.
    pub(crate) fn end(self) -> Result<()> {
        let cluster = &self.it.cluster;
        for replica in 0..2 {
            cluster.kill_controller(replica)?;
        }
        cluster.start_controller(0)?;
        for node in &cluster.world.nodes {
            cluster.kill_proxy(node)?;
            cluster.start_proxy(node)?;
            self.kube.api.delete("Pod", SYSTEM, &format!("sheave-proxy-{}", node.name), 0)?;
        }
        cluster.world.nodes.iter().try_for_each(|node| self.connected(node))
    }

    fn mounted(&self, node: &Node) -> PathBuf {
        self.folder.join(&node.name).join("mounted")
    }

    fn token(&self, node: &Node, audience: &str) -> Result<String> {
        self.kube.api.pod_token(&format!("sheave-proxy-{}", node.name), audience)
    }

    fn give(&self, node: &Node, token: &str) -> Result<()> {
        Ok(fs::write(self.folder.join(&node.name).join("token"), token)?)
    }

    fn config_map(&self) -> Result<Value> {
        Ok(self.kube.api.read("ConfigMap", SYSTEM, "sheave-discovery")?["data"].clone())
    }

    /// What a kubelet does about a minute after the ConfigMap has changed.
    fn mount(&self, node: &Node) -> Result<()> {
        let data = self.config_map()?;
        self.mount_data(
            node,
            data["controllers"].as_str().unwrap_or_default(),
            data["ca.crt"].as_str().unwrap_or_default(),
        )
    }

    pub(crate) fn mount_data(&self, node: &Node, controllers: &str, ca: &str) -> Result<()> {
        fs::write(self.mounted(node).join("controllers"), controllers)?;
        Ok(fs::write(self.mounted(node).join("ca.crt"), ca)?)
    }

    fn restart(&self, node: &Node) -> Result<()> {
        self.it.cluster.kill_proxy(node)?;
        self.start_proxy(node)
    }

    pub(crate) fn start_proxy(&self, node: &Node) -> Result<()> {
        let token = self.folder.join(&node.name).join("token");
        self.it.cluster.start_proxy_by_token(node, &self.mounted(node), &token)
    }

    /// With a folder in place of its BPF file system, and the choice of a data path left to it.
    pub(crate) fn start_proxy_without_bpffs(&self, node: &Node, folder: &Path) -> Result<()> {
        let token = self.folder.join(&node.name).join("token");
        self.it.cluster.start_proxy_by_token_with(node, &self.mounted(node), &token, "auto", folder)
    }

    /// Whether the ConfigMap names both replicas, at ports from `first` on, and a CA.
    pub(crate) fn lists(&self, first: u16) -> Result<()> {
        let data = self.config_map()?;
        let lines: Vec<_> = data["controllers"].as_str().unwrap_or_default().lines().collect();
        let wanted = [0, 1].map(|replica| address(first, replica).to_string());
        ensure!(wanted.iter().all(|wanted| lines.contains(&wanted.as_str())), "it lists {lines:?}");
        ensure!(data["ca.crt"].as_str().is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")), "no CA: {data}");
        Ok(())
    }

    pub(crate) fn connected(&self, node: &Node) -> Result<()> {
        until(&format!("{} has a stream", node.name), CONNECTED, || {
            let connected = metrics::proxy(node)?.sum("sheave_stream_connected", &[]);
            ensure!(connected == 1.0, "it has none");
            Ok(())
        })
        .map(drop)
    }

    /// How many streams replicas have refused for who asked.
    fn refused(&self) -> Result<f64> {
        let of = |replica| self.it.cluster.controller_metrics(replica);
        let identity = [("reason", "identity")];
        Ok(of(0)?.sum("sheave_streams_refused_total", &identity)
            + of(1)?.sum("sheave_streams_refused_total", &identity))
    }
}

/// Where a replica serves, at ports that no relay and no other replica has.
pub(crate) fn address(first: u16, replica: u8) -> SocketAddr {
    SocketAddr::from((ROUTER.v4, first + u16::from(replica)))
}

fn tokens(it: &Context) -> Result<()> {
    let all = ByTokens::start(it)?;
    let web = it.deployment("web", 2)?;
    let vip = it.vip();
    it.apply(&it.service("web", vip, &web, &[objects::port("hello", "TCP", 90, "hello")]))?;
    let served = || -> Result<()> {
        let (target, agent) = (sockets(vip, 90)[0], it.agent(From::Pod(2)));
        let sources = it.sources(From::Pod(2), To::ClusterIp, false);
        served_within(SOON, it, agent, &question(Kind::Hello, target), &web.names(), &sources)
    };
    served()?;
    it.saved()?;
    let (one, two): (&Arc<Node>, _) = (it.node(1), it.node(2));
    let good = all.token(two, AUDIENCE)?;
    let key = all.kube.accounts_key();
    let again = tokens::with_claims(&good, &key, |_| {})?;
    let bad = [
        ("of another node", all.token(one, AUDIENCE)?),
        ("for another audience", all.token(two, "https://test")?),
        ("that has expired", tokens::expired(&good, &key)?),
        ("that is forged", tokens::forged(&good)?),
        ("that is none", "secret".to_owned()),
    ];
    for (what, token) in bad {
        let refuse = || -> Result<()> {
            let before = all.refused()?;
            all.give(two, &token)?;
            all.restart(two)?;
            until("it is refused more than once", CONNECTED, || {
                let refused = all.refused()? - before;
                ensure!(refused >= 2.0, "refused {refused} times");
                Ok(())
            })?;
            let connected = metrics::proxy(two)?.sum("sheave_stream_connected", &[]);
            ensure!(connected == 0.0, "it has a stream");
            served().context("the last snapshot is no longer served")?;
            // The token is read anew, so that nothing has to be restarted once it is right.
            all.give(two, &again)?;
            all.connected(two)
        };
        refuse().with_context(|| format!("a token {what}"))?;
    }
    all.end()
}

fn changes(it: &Context) -> Result<()> {
    let all = ByTokens::start(it)?;
    let (one, two) = (it.node(1), it.node(2));
    let right = all.config_map()?;
    let old_ca = right["ca.crt"].as_str().unwrap_or_default();
    let stale = "10.0.0.250:15010\n";
    // On one node the ConfigMap is wrong and what is remembered right, on the other what is remembered is gone.
    let strange = fs::read_to_string(it.cluster.world.run.folder.join("kube/ca.crt"))?;
    all.mount_data(one, stale, &strange)?;
    fs::remove_file(two.state.join("discovery"))?;
    for node in [one, two] {
        all.restart(node)?;
        all.connected(node)?;
    }
    // Somebody spoils the ConfigMap, and takes it away.
    let spoiled = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "sheave-discovery", "namespace": SYSTEM}, "data": {"controllers": stale, "ca.crt": "none"}});
    all.kube.api.apply(&spoiled)?;
    until("the leader has put the ConfigMap right", CONNECTED, || all.lists(15_410))?;
    all.kube.api.delete("ConfigMap", SYSTEM, "sheave-discovery", 0)?;
    until("the leader has written the ConfigMap again", CONNECTED, || all.lists(15_410))?;

    // A new CA: both are trusted at first, and the new one signs once both nodes have said that they trust it.
    all.kube.api.delete("Secret", SYSTEM, "sheave-ca", 0)?;
    until("the ConfigMap has both CAs", CONNECTED, || {
        let ca = all.config_map()?["ca.crt"].as_str().unwrap_or_default().to_owned();
        ensure!(ca.contains(old_ca.trim()) && ca.matches("BEGIN CERTIFICATE").count() == 2, "{ca}");
        Ok(())
    })?;
    until("the new CA signs", INTRODUCED, || {
        let data = all.kube.api.read("Secret", SYSTEM, "sheave-ca")?["data"].clone();
        ensure!(data["previous.key"].is_null(), "the old one still does");
        Ok(())
    })?;
    // What is mounted has only the old CA, but the stream has brought the new one.
    for node in [one, two] {
        all.mount_data(node, right["controllers"].as_str().unwrap_or_default(), old_ca)?;
        all.restart(node)?;
        all.connected(node)?;
    }

    // Every address changes at once; nodes learn of that by the ConfigMap, without a restart.
    for replica in 0..2 {
        it.cluster.kill_controller(replica)?;
        it.cluster.start_controller_by_tokens(replica, address(15_420, replica))?;
    }
    until("the new addresses are in the ConfigMap", INTRODUCED, || all.lists(15_420))?;
    for node in [one, two] {
        all.mount(node)?;
        all.connected(node)?;
    }
    all.end()
}
