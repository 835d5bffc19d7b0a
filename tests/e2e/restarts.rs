//! The controller's view after trouble with its source: relists, and nothing that it missed stays missed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sheave_harness::address::ROUTER;
use sheave_harness::relay::Relay;
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;

use crate::case::{Case, kube};
use crate::check::{SOON, dropped, question, served_within};
use crate::context::{Context, From, To, ports, sockets};

/// A proxy that has lost its controller tries again after at most about 6 s, at each of two replicas.
const RECONNECTED: Duration = Duration::from_secs(20);

pub(crate) const CASES: &[Case] = &[kube("a_watch_too_old_for_etcd_is_listed_again", compaction)];

/// Changes what the controller may not see, until its last resource version is gone from etcd and from the API server.
fn compaction(it: &Context) -> Result<()> {
    let kube = it.kube.as_ref().context("this case needs an API server")?;
    let relay = Relay::start(SocketAddr::from((ROUTER.v4, 0)), kube.address())?;
    let kubeconfig = kube.kubeconfig_through(relay.address)?.display().to_string();
    let source = ["--source", "kube", "--kubeconfig", &kubeconfig, "--lease-namespace", sheave_harness::kube::SYSTEM];
    it.cluster.kill_controller(0)?;
    it.cluster.start_controller_with(0, &source.map(str::to_owned))?;

    let (mut web, other) = (it.deployment("web", 1)?, it.deployment("other", 1)?);
    let (kept, gone, new) = (it.vip(), it.vip(), it.vip());
    it.apply(&it.service("kept", kept, &web, &ports()))?;
    it.apply(&it.service("gone", gone, &other, &ports()))?;
    let served = |pair, names: &[String]| -> Result<()> {
        for target in sockets(pair, 80) {
            let sources = it.sources(From::Pod(1), To::ClusterIp, target.is_ipv6());
            served_within(RECONNECTED, it, it.agent(From::Pod(1)), &question(Kind::Tcp, target), names, &sources)?;
        }
        Ok(())
    };
    served(kept, &web.names())?;
    served(gone, &other.names())?;

    relay.set_closed(true);
    web.scale(3)?;
    it.remove("Service", "gone")?;
    it.apply(&it.service("new", new, &other, &ports()))?;
    kube.compact()?;
    kube.stop_server()?;
    kube.start_server()?;
    let relists =
        |kind| -> Result<f64> { Ok(it.cluster.controller_metrics(0)?.sum("sheave_relists_total", &[("kind", kind)])) };
    let before = [relists("Pod")?, relists("Service")?];
    relay.set_closed(false);

    served(kept, &web.names())?;
    served(new, &other.names())?;
    for target in sockets(gone, 80) {
        dropped(it.agent(From::Pod(1)), Kind::Tcp, target)?;
    }
    until("what the watches had missed was listed, not watched", SOON, || {
        let now = [relists("Pod")?, relists("Service")?];
        ensure!(
            now[0] > before[0] && now[1] > before[1],
            "lists after the first, of Pods and Services: {before:?}, then {now:?}"
        );
        Ok(())
    })?;
    it.cluster.kill_controller(0)?;
    it.cluster.start_controller(0)?;
    web.scale(2)?;
    served(kept, &web.names())
}
