//! Which program serves the cluster's Services, and by which data path.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sheave_harness::cluster::DataPath;
use sheave_harness::kubelets::fixture::Fixture;
use sheave_harness::metrics::{self, Metrics};
use sheave_harness::wait::until;

use crate::shell;

/// A proxy's metrics on its node.
const ADMIN: u16 = 15020;
/// A DaemonSet of two is rolled over.
const ROLLED: Duration = Duration::from_secs(30);

/// Whether it is Sheave; as `tests/cluster/up` noted it.
pub(crate) fn is_sheave(fixture: &Fixture) -> Result<bool> {
    let noted = std::fs::read_to_string(fixture.state.join("env")).context("what tests/cluster/up noted")?;
    Ok(noted.lines().any(|line| line == "proxy=sheave"))
}

/// Tells every proxy which data path to take, and waits until it does.
pub(crate) fn choose(fixture: &Fixture, path: DataPath) -> Result<()> {
    let lines = format!(
        "kubectl -n sheave-system set env daemonset/sheave-proxy SHEAVE_DATAPATH={}
         kubectl -n sheave-system rollout status daemonset/sheave-proxy --timeout=2m",
        path.name()
    );
    shell::run(fixture, "world", &lines)?;
    if path == DataPath::Auto {
        return Ok(());
    }
    for node in &fixture.nodes {
        until(&format!("the proxy of {} takes the path", node.name), ROLLED, || {
            let metrics = proxy(node.addresses[0])?;
            ensure!(
                metrics.has("sheave_datapath_info", &[("mode", path.name())]),
                "{:?}",
                metrics.lines("sheave_datapath_info")
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// What a node's proxy measures.
pub(crate) fn proxy(node: IpAddr) -> Result<Metrics> {
    metrics::read(SocketAddr::new(node, ADMIN))
}
