//! Without tokens: by an operator's certificate where proxies have certificates, by the controller's unix socket behind a folder.

use std::time::Duration;

use anyhow::{Result, ensure};
use sheave_harness::wait::until;

use super::golden::Golden;
use crate::context::Context;

/// Both nodes come back after the cases before this one.
const SOON: Duration = Duration::from_secs(40);

pub(super) fn run(it: &Context) -> Result<()> {
    until("both nodes have a stream", SOON, || {
        let now = it.cluster.controller_metrics(0)?.sum("sheave_subscribers", &[]);
        ensure!(now == 2.0, "{now} streams");
        Ok(())
    })?;
    let run = &it.cluster.world.run;
    let mut golden = Golden {
        place: it.cluster.world.router.clone(),
        known: vec![
            (run.folder.display().to_string(), "RUN".to_owned()),
            (it.cluster.options.name.clone(), "CLUSTER".to_owned()),
        ],
    };
    if it.kube.is_none() {
        let endpoint = format!("unix:{}", it.cluster.socket(0).display());
        golden.expect("status-by-unix-socket", &[], &["status", "--controller", &endpoint])?;
        return golden.expect("services-by-unix-socket", &[], &["services", "--controller", &endpoint]);
    }
    let endpoint = it.cluster.relay(0)?.address.to_string();
    golden.known.push((endpoint.clone(), "CONTROLLER".to_owned()));
    let tls = |folder: &str| it.cluster.tls().join(folder).display().to_string();
    golden.expect(
        "status-by-certificate",
        &[],
        &["status", "--controller", &endpoint, "--tls-dir", &tls("operator")],
    )?;
    golden.expect(
        "certificate-of-a-node",
        &[],
        &["status", "--controller", &endpoint, "--tls-dir", &tls("nodes/node1")],
    )
}
