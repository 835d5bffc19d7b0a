//! Whom controllers and proxies trust, and how they find each other when what they know is wrong: tokens of others, tokens that have
//! expired, ConfigMaps that are missing or wrong, a new CA.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sheave_harness::kube::tokens;
use sheave_harness::wait::until;
use tonic::Code;

use crate::bootstrap::{connected, controllers, streams};
use crate::check::SOON;
use crate::context::{Case, Context, sheave};
use crate::faults::Stage;
use crate::fixture::Node;
use crate::nodes::{self, becomes};
use crate::serving;
use crate::shell::{self, shell};
use crate::subscriber::{First, subscribe};
use crate::traffic::Traffic;
use crate::workload::Deployment;

pub(crate) const CASES: &[Case] = &[
    sheave("only_a_nodes_own_token_opens_discovery_and_it_shows_that_node_alone", own_token),
    sheave("a_nodes_token_expires_while_its_kubelet_is_away", token_expires).long(),
    sheave("the_config_map_is_missing_when_proxies_start", missing).long(),
    sheave("the_config_map_has_a_wrong_ca_when_proxies_start", wrong_ca).long(),
    sheave("the_config_map_has_stale_addresses_when_proxies_start", stale_addresses).long(),
    sheave("a_new_ca_takes_over_and_no_stream_ends", new_ca).long(),
];

const SYSTEM: &str = "sheave-system";
const MAP: &str = "sheave-discovery";
const AUDIENCE: &str = "sheave-discovery";
/// A kubelet looks at what a pod mounts about once a minute and a half, and a proxy tries again after 6 s.
const MOUNTED: Duration = Duration::from_secs(150);
/// A new CA signs after 20 s at the earliest and the old one goes 60 s later; each is noticed within 5 s.
const REPLACED: Duration = Duration::from_secs(150);

fn config_map(it: &Context<'_>) -> Result<Value> {
    Ok(it.fixture.api.read("ConfigMap", SYSTEM, MAP)?["data"].clone())
}

/// The key that tokens of this cluster are signed with.
fn accounts_key(it: &Context<'_>) -> PathBuf {
    it.fixture.state.join("pki/accounts.key")
}

fn own_token(it: &Context<'_>) -> Result<()> {
    shell::ready(it)?;
    it.service("web", "ClusterIP")?;
    let [one, two] = [0, 1].map(|n| it.nodes()[n].name.as_str());
    let data = config_map(it)?;
    let ca = data["ca.crt"].as_str().context("a CA")?;
    let token = |node: &str, audience: &str| it.fixture.api.pod_token(&nodes::proxy_pod(it, node)?, audience);
    let good = token(one, AUDIENCE)?;
    let bad = [
        ("none at all", None, one, Code::Unauthenticated),
        ("one that is none", Some("secret".to_owned()), one, Code::Unauthenticated),
        ("another node's", Some(token(two, AUDIENCE)?), one, Code::PermissionDenied),
        ("its own, for another node's facts", Some(good.clone()), two, Code::PermissionDenied),
        (
            "one for the API server itself",
            Some(token(one, "https://kubernetes.default.svc")?),
            one,
            Code::Unauthenticated,
        ),
        ("one that has expired", Some(tokens::expired(&good, &accounts_key(it))?), one, Code::Unauthenticated),
        ("a forged one", Some(tokens::forged(&good)?), one, Code::Unauthenticated),
    ];
    let wanted = format!("{}/web", it.namespace);
    let replicas: Vec<SocketAddr> =
        data["controllers"].as_str().unwrap_or_default().lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(replicas.len() == 2, "two replicas serve: {replicas:?}");
    for replica in replicas {
        for (what, token, node, code) in &bad {
            let said = subscribe(replica, ca, token.as_deref(), node)?;
            let refused = said.err().with_context(|| format!("{what} opened discovery at {replica}"))?;
            ensure!(refused.code() == *code, "{what}: {refused}");
        }
        // Signed as the API server signs, so that the expired one was refused for its age and nothing else.
        for token in [good.clone(), tokens::with_claims(&good, &accounts_key(it), |_| {})?] {
            until("the node's own token opens discovery, and shows what is there", SOON, || {
                let First { services, nodes } = subscribe(replica, ca, Some(&token), one)??;
                ensure!(services.contains(&wanted), "{wanted} is not among {services:?}");
                ensure!(nodes.iter().eq([one]), "facts of {nodes:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Writes a token over the one that a kubelet has projected into a proxy's pod, and not by its own way of doing that, which would
/// need the kubelet.
fn project(it: &Context<'_>, node: &str, token: &str) -> Result<()> {
    let pod = it.fixture.api.read("Pod", SYSTEM, &nodes::proxy_pod(it, node)?)?;
    let uid = pod["metadata"]["uid"].as_str().context("uid")?;
    let file = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/token/..data/token");
    shell(it, node, &format!("test -s {file}; printf %s {token} >{file}")).map(drop)
}

/// A kubelet renews a token at four fifths of its hour, so it takes one that is away for long. Nothing tells a stream that stands;
/// the next one is refused.
fn token_expires(it: &Context<'_>) -> Result<()> {
    let (fresh, stale) = (&it.nodes()[0], &it.nodes()[1]);
    let pinned = json!({"nodeSelector": {"kubernetes.io/hostname": fresh.name}});
    let web = Deployment::with(&it.fixture.api, &it.namespace, "web", 4, &pinned)?;
    let stage = Stage { web, service: it.service("web", "NodePort")? };
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    let token = it.fixture.api.pod_token(&nodes::proxy_pod(it, &stale.name)?, AUDIENCE)?;
    let expired = tokens::expired(&token, &accounts_key(it))?;
    shell::service(it, "stop", &stale.name, "kubelet")?;
    let refused = || -> Result<()> {
        project(it, &stale.name, &expired)?;
        // The stale node's replica can't be started again; the other one is, and streams begin anew there.
        for node in it.nodes() {
            nodes::kill(it, &node.name, &controller_container(it, node)?)?;
        }
        until("the replica that is left refuses the token", SOON * 2, || {
            let metrics = sheave_harness::metrics::read(SocketAddr::new(fresh.addresses[0], 15021))?;
            let refused = metrics.sum("sheave_streams_refused_total", &[("reason", "identity")]);
            ensure!(refused >= 2.0 && streams(it)? == [1.0, 0.0], "{refused} refused, streams: {:?}", streams(it)?);
            Ok(())
        })?;
        stage.web.scale(6)?;
        stage.current_on(fresh, &stage.web.names()?)?;
        // What it knows lives, so it serves that.
        stage.current_on(stale, &names)
    };
    let refused = refused();
    shell::service(it, "start", &stale.name, "kubelet")?;
    refused?;
    becomes(it, &stale.name, true, MOUNTED)?;
    finds(it, Instant::now())?;
    stage.current(it, &stage.web.names()?)?;
    shell::ready(it)?;
    stage.follows(it)?;
    traffic.unharmed(&stage.left_of(&names)?).map(drop)
}

/// The controller's container on a node.
fn controller_container(it: &Context<'_>, node: &Node) -> Result<String> {
    let on = |pod: &Value| {
        pod["metadata"]["labels"]["app.kubernetes.io/name"] == "sheave-controller"
            && pod["spec"]["nodeName"] == node.name
    };
    let pods = it.fixture.api.list("Pod", SYSTEM)?;
    let pod = pods.iter().find(|pod| on(pod)).with_context(|| format!("{} has no controller", node.name))?;
    nodes::container(it, SYSTEM, pod["metadata"]["name"].as_str().unwrap_or_default())
}

/// Waits until every proxy has found a controller, and says how long that took.
fn finds(it: &Context<'_>, since: Instant) -> Result<()> {
    until("every proxy has a stream", MOUNTED, || {
        let streams = streams(it)?;
        ensure!(streams.iter().all(|up| *up == 1.0), "{streams:?}");
        Ok(())
    })?;
    println!("    every proxy has a stream after {:.1} s", since.elapsed().as_secs_f64());
    Ok(())
}

/// Every proxy starts with a snapshot and nothing else: no controller, nothing remembered, and this instead of the ConfigMap. Then
/// controllers come back, and whichever leads puts it right.
fn spoiled(it: &Context<'_>, spoil: impl Fn(&Value) -> Result<()>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let right = config_map(it)?;
    let traffic = Traffic::start(it, &stage.service, &names)?.though_proxies_end();
    let alone = || -> Result<()> {
        controllers(it, 0, "")?;
        connected(it, false)?;
        spoil(&right)?;
        for node in it.nodes() {
            shell(it, &node.name, "rm /var/lib/sheave/discovery")?;
        }
        shell(it, "world", "kubectl -n sheave-system delete pods -l app.kubernetes.io/name=sheave-proxy")?;
        shell(it, "world", "kubectl -n sheave-system rollout status daemonset/sheave-proxy --timeout=1m")?;
        stage.web.scale(6)?;
        stage.current(it, &names).context("what was there before the fault")
    };
    let alone = alone();
    let since = Instant::now();
    controllers(it, 2, "")?;
    alone?;
    until("the leader has put the ConfigMap right", SOON, || {
        let now = config_map(it)?;
        ensure!(now["ca.crt"] == right["ca.crt"] && now["controllers"] == right["controllers"], "{now}");
        Ok(())
    })?;
    finds(it, since)?;
    stage.current(it, &stage.web.names()?)?;
    shell::ready(it)?;
    stage.follows(it)?;
    traffic.unharmed(&stage.left_of(&names)?).map(drop)
}

fn missing(it: &Context<'_>) -> Result<()> {
    spoiled(it, |_| it.fixture.api.delete("ConfigMap", SYSTEM, MAP, 0))
}

fn wrong_ca(it: &Context<'_>) -> Result<()> {
    // A good certificate of somebody else's: the API server's own CA.
    let strange = std::fs::read_to_string(it.fixture.state.join("pki/ca.crt"))?;
    spoiled(it, |_| it.fixture.api.patch("ConfigMap", SYSTEM, MAP, "", &json!({"data": {"ca.crt": strange}})))
}

/// Addresses on the nodes' own network that nobody has. The controllers' own Service is what is left then.
fn stale_addresses(it: &Context<'_>) -> Result<()> {
    spoiled(it, |_| {
        let stale = "10.88.0.98:15010\n10.88.0.99:15010\n";
        it.fixture.api.patch("ConfigMap", SYSTEM, MAP, "", &json!({"data": {"controllers": stale}}))
    })
}

fn new_ca(it: &Context<'_>) -> Result<()> {
    shell::ready(it)?;
    connected(it, true)?;
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    let again = || -> Result<Vec<f64>> {
        let of = |node: &Node| Ok(serving::proxy(node.addresses[0])?.sum("sheave_stream_reconnects_total", &[]));
        it.nodes().iter().map(of).collect()
    };
    let before = again()?;
    let old = config_map(it)?["ca.crt"].as_str().context("a CA")?.trim().to_owned();
    it.fixture.api.delete("Secret", SYSTEM, "sheave-ca", 0)?;
    let start = Instant::now();
    let mut said = String::new();
    for (what, both, signs) in
        [("both are trusted", true, false), ("the new one signs", true, true), ("the old one is gone", false, true)]
    {
        until(what, REPLACED, || {
            let ca = config_map(it)?["ca.crt"].as_str().unwrap_or_default().to_owned();
            let secret = it.fixture.api.read("Secret", SYSTEM, "sheave-ca")?["data"].clone();
            let new = ca.replace(&old, "").contains("BEGIN CERTIFICATE");
            ensure!(new && ca.contains(&old) == both && secret["previous.key"].is_null() == signs, "{ca}");
            Ok(())
        })?;
        write!(said, " {what} after {:.0} s,", start.elapsed().as_secs_f64())?;
        stage.follows(it).with_context(|| format!("when {what}"))?;
    }
    println!("   {}", said.trim_end_matches(','));
    ensure!(again()? == before, "streams ended: {before:?} began anew before and {:?} after", again()?);
    // Processes that start now sign by the new CA alone, and proxies trust it.
    shell(it, "world", "kubectl -n sheave-system rollout restart deployment/sheave-controller")?;
    shell::ready(it)?;
    finds(it, Instant::now())?;
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}
