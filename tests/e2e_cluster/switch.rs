//! The way from Sheave to kube-proxy and back on a live cluster, by the page's own commands, under load.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use sheave_harness::cluster::DataPath;
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;

use crate::check;
use crate::context::Context;
use crate::faults::Stage;
use crate::shell::{self, shell, typed};
use crate::traffic::Traffic;

/// kube-proxy, as somebody who comes from it has it.
const KUBE_PROXY: &str = "tests/cluster/manifests/kube-proxy.yaml";

fn kube_proxy_is_gone(it: &Context<'_>) -> Result<()> {
    until("kube-proxy's pods are gone", check::SOON, || {
        let left = shell(it, "world", "kubectl -n kube-system get pods -l k8s-app=kube-proxy -o name")?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

/// Takes kube-proxy away with everything that it has left in the kernel.
fn without_kube_proxy(it: &Context<'_>) -> Result<()> {
    shell(it, "world", &format!("kubectl delete --ignore-not-found -f {KUBE_PROXY}"))?;
    kube_proxy_is_gone(it)?;
    for node in it.nodes() {
        shell(
            it,
            &node.name,
            "for family in ip ip6; do nft delete table $family kube-proxy 2>/dev/null || true; done",
        )?;
    }
    Ok(())
}

/// Removes Sheave as the page says, and looks for what is left on every node with the page's own commands.
pub(crate) fn remove(it: &Context<'_>) -> Result<()> {
    typed(it, "docs/install.md", "remove")?;
    typed(it, "docs/install.md", "clean")?;
    typed(it, "docs/install.md", "cleaned")?;
    for node in it.nodes() {
        for line in sheave_harness::pages::commands("docs/troubleshooting.md", "left")?.lines() {
            let said = shell(it, &node.name, &format!("{line} 2>/dev/null || true"))?;
            ensure!(said.trim().is_empty(), "{}: {line}: {said}", node.name);
        }
    }
    shell(it, "world", "kubectl -n kube-system delete jobs -l app.kubernetes.io/name=sheave-clean").map(drop)
}

/// Installs it again, with the data path that the run is about.
pub(crate) fn install(it: &Context<'_>) -> Result<()> {
    shell(it, "world", "tests/cluster/sheave")?;
    let path = it.path.unwrap_or(DataPath::Auto).name();
    shell(it, "world", &format!("kubectl -n sheave-system set env daemonset/sheave-proxy SHEAVE_DATAPATH={path}"))?;
    shell::ready(it)
}

/// Sheave -> both -> kube-proxy -> both -> Sheave. Connections that the hook has sent to their backend stay whoever serves; those
/// that kube-proxy has translated stay by their entries in conntrack; those that a listener carries end with the proxy.
pub(crate) fn there_and_back(it: &Context<'_>) -> Result<()> {
    shell::ready(it)?;
    shell(it, "world", "tests/cluster/load target/images/kube-proxy.tar")?;
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let switched = || -> Result<()> {
        let traffic = Traffic::start(it, &stage.service, &names)?.though_proxies_end();
        shell(it, "world", &format!("kubectl apply -f {KUBE_PROXY}"))?;
        shell(it, "world", "kubectl -n kube-system rollout status daemonset/kube-proxy --timeout=2m")?;
        remove(it)?;
        stage.follows(it)?;
        traffic.unharmed(&names).context("from Sheave to kube-proxy")?;
        // Nobody's proxy carries what kube-proxy serves, so nothing may break on the way back, whatever the data path.
        let traffic = Traffic::start(it, &stage.service, &names)?.carried_by_nobody();
        install(it)?;
        typed(it, "docs/install.md", "kube-proxy-off")?;
        kube_proxy_is_gone(it)?;
        stage.follows(it)?;
        traffic.unharmed(&names).context("from kube-proxy to Sheave")?;
        let target = SocketAddr::new(it.nodes()[0].addresses[0], stage.service.node_ports[0]);
        check::served_by(&it.fixture.outside, Kind::Tcp, target, &names)?;
        // The page's way to have it back.
        typed(it, "docs/install.md", "kube-proxy-on").map(drop)
    };
    let switched = switched();
    without_kube_proxy(it).and(switched)?;
    shell::ready(it)
}
