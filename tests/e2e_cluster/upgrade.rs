//! The product itself is replaced under load, and back: every proxy, one node after the other, and the controllers.

use anyhow::{Result, ensure};

use crate::context::{Case, Context, sheave};
use crate::faults::Stage;
use crate::nodes;
use crate::shell::{self, shell};
use crate::traffic::Traffic;

pub(crate) const CASES: &[Case] = &[
    sheave("every_proxy_is_replaced_and_back_under_load", proxies),
    sheave("every_controller_is_replaced_and_back_under_load", controllers).long(),
];

/// A new template, all of it rolled out; and back.
fn there_and_back(it: &Context<'_>, object: &str, meanwhile: impl Fn() -> Result<()>) -> Result<()> {
    for step in ["rollout restart", "rollout undo"] {
        shell(it, "world", &format!("kubectl -n sheave-system {step} {object}"))?;
        meanwhile()?;
        shell(it, "world", &format!("kubectl -n sheave-system rollout status {object} --timeout=3m"))?;
    }
    shell::ready(it)
}

fn proxies(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let pods = || it.nodes().iter().map(|node| nodes::proxy_pod(it, &node.name)).collect::<Result<Vec<_>>>();
    let before = pods()?;
    let traffic = Traffic::start(it, &stage.service, &names)?.though_proxies_end();
    there_and_back(it, "daemonset/sheave-proxy", || Ok(()))?;
    let after = pods()?;
    ensure!(after.iter().all(|pod| !before.contains(pod)), "not all were replaced: {before:?}, {after:?}");
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

fn controllers(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    // One replica always serves: a change in the middle is followed as ever.
    there_and_back(it, "deployment/sheave-controller", || stage.follows(it))?;
    traffic.unharmed(&names).map(drop)
}
