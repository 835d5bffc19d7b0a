//! `sheave-cloud`: stands in for a cloud's load balancer in front of the test cluster's nodes.
//!
//! Gives Services of type LoadBalancer an address of each of their families, and forwards their ports, in the router's kernel,
//! to the NodePorts of nodes that are Ready (and that answer the Service's health check, where its policy is Local). Whatever
//! else is sent to its addresses stays without an answer, as a cloud's firewall leaves it.

#![expect(clippy::print_stderr, reason = "a test program; its log is its standard error")]

mod health;
mod objects;
mod rules;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use sheave_harness::kube::Api;

use crate::objects::Balanced;

/// Between two looks at the cluster: short against what a real cloud takes (tens of seconds), long enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// How to reach the cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// Whom to be.
    #[arg(long)]
    kubeconfig: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let api = Api::from_kubeconfig(&arguments.kubeconfig)?;
    let mut addresses = objects::Addresses::default();
    let mut written = String::new();
    let mut said = String::new();
    loop {
        let failure =
            look(&api, &mut addresses, &mut written).err().map(|error| format!("{error:#}")).unwrap_or_default();
        if failure != said && !failure.is_empty() {
            eprintln!("cloud: {failure}");
        }
        said = failure;
        std::thread::sleep(LOOK_EVERY);
    }
}

/// One look: rules for what there is now, then the addresses into the Services' status.
fn look(api: &Api, addresses: &mut objects::Addresses, written: &mut String) -> Result<()> {
    let nodes = objects::ready_nodes(&api.list("Node", "")?);
    let services = api.list("Service", "")?;
    addresses.forget_all_but(&services);
    let mut balanced: Vec<Balanced> = Vec::new();
    for service in services.iter().filter(|service| objects::is_ours(service)) {
        balanced.extend(objects::balanced(service, addresses.of(service)?, &nodes));
    }
    let checks: BTreeMap<_, _> =
        balanced.iter().flat_map(Balanced::checks).map(|at| (at, health::answers(at))).collect();
    balanced.iter_mut().for_each(|it| it.keep_healthy(&checks));
    let wanted = rules::text(&balanced);
    if wanted != *written {
        rules::apply(&wanted).context("rules")?;
        *written = wanted;
    }
    for service in &services {
        let status = objects::status(service, addresses);
        if service["status"]["loadBalancer"]["ingress"] != status {
            let (namespace, name) = objects::name(service)?;
            let change = json!({"status": {"loadBalancer": {"ingress": status}}});
            api.patch("Service", namespace, name, "/status", &change)?;
        }
    }
    Ok(())
}
