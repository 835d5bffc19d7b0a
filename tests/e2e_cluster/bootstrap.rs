//! How nodes come to serve Services when nothing serves them yet: all of the cluster at once, proxies without a controller,
//! controllers that are elsewhere than they were.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sheave_harness::testpod::protocol::{Kind, Outcome};
use sheave_harness::wait::until;

use crate::check::{self, SOON};
use crate::context::{Case, Context, case, sheave};
use crate::faults::Stage;
use crate::nodes::{self, becomes};
use crate::serving;
use crate::shell::{self, shell};
use crate::traffic::Traffic;

pub(crate) const CASES: &[Case] = &[
    case("all_nodes_start_at_once_and_the_cluster_comes_up", cold_start).long(),
    sheave("all_proxies_are_restarted_while_there_is_no_controller", no_controller).long(),
    sheave("every_controller_moves_to_another_address", controllers_move).long(),
];

/// Every node and all that runs on it, on two cores.
const COLD: Duration = Duration::from_secs(120);

fn cold_start(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    stage.current(it, &stage.web.names()?)?;
    let all = || it.nodes().iter().map(|node| node.name.as_str());
    all().try_for_each(|node| shell::service(it, "stop", "world", node))?;
    all().try_for_each(|node| shell::service(it, "start", "world", node))?;
    let start = Instant::now();
    until("the API server is back", COLD, || it.fixture.api.get_text("/readyz").map(drop))?;
    // Nobody has told the API yet that the nodes were gone, so what counts is that the clients, which are pods, are back.
    nodes::clients_answer(it)?;
    all().try_for_each(|node| becomes(it, node, true, COLD))?;
    for node in it.nodes() {
        until(&format!("names resolve on {}", node.name), COLD, || {
            let found = node.pod.resolve("kubernetes.default")?;
            ensure!(!found.is_empty(), "no address");
            Ok(())
        })?;
        println!("    {}: names resolve {:.1} s after the start", node.name, start.elapsed().as_secs_f64());
    }
    stage.web.wait(4)?;
    stage.follows(it)?;
    let kubernetes = it.fixture.api.read("Service", "default", "kubernetes")?;
    let address = kubernetes["spec"]["clusterIP"].as_str().unwrap_or_default().parse()?;
    for agent in it.inside() {
        check::ends_in(agent, Kind::Http, std::net::SocketAddr::new(address, 443), &Outcome::Status(400))?;
    }
    Ok(())
}

/// How many streams are up, by node.
pub(crate) fn streams(it: &Context<'_>) -> Result<Vec<f64>> {
    let of = |node: &crate::fixture::Node| Ok(serving::proxy(node.addresses[0])?.sum("sheave_stream_connected", &[]));
    it.nodes().iter().map(of).collect()
}

pub(crate) fn connected(it: &Context<'_>, wanted: bool) -> Result<()> {
    until(&format!("proxies have a stream: {wanted}"), SOON, || {
        let streams = streams(it)?;
        ensure!(streams.iter().all(|up| (*up == 1.0) == wanted), "{streams:?}");
        Ok(())
    })
}

/// Another number of controllers, on one node or (empty) on any.
pub(crate) fn controllers(it: &Context<'_>, replicas: u32, node: &str) -> Result<()> {
    let selector = if node.is_empty() { "null".to_owned() } else { format!("\"{node}\"") };
    let patch = format!(
        r#"{{"spec": {{"replicas": {replicas}, "template": {{"spec": {{"nodeSelector": {{"kubernetes.io/hostname": {selector}}}}}}}}}}}"#
    );
    let lines = format!(
        "kubectl -n sheave-system patch deployment sheave-controller --patch '{patch}'
         kubectl -n sheave-system rollout status deployment/sheave-controller --timeout=2m
         kubectl -n sheave-system wait --for=delete pod -l app.kubernetes.io/name=sheave-controller --timeout=1m {}",
        if replicas == 0 { "" } else { "--field-selector=status.phase=Failed" }
    );
    shell(it, "world", &lines).map(drop)
}

fn no_controller(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?.though_proxies_end();
    let restarted = || -> Result<()> {
        controllers(it, 0, "")?;
        connected(it, false)?;
        shell(it, "world", "kubectl -n sheave-system delete pods -l app.kubernetes.io/name=sheave-proxy")?;
        let rollout = "kubectl -n sheave-system rollout status daemonset/sheave-proxy --timeout=1m";
        shell(it, "world", rollout)?;
        // What is on their disks is what is there.
        stage.current(it, &names)
    };
    let restarted = restarted();
    controllers(it, 2, "")?;
    restarted?;
    shell::ready(it)?;
    connected(it, true)?;
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

fn controllers_move(it: &Context<'_>) -> Result<()> {
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?;
    let moved = || -> Result<()> {
        for node in it.nodes() {
            controllers(it, 1, &node.name)?;
            until(&format!("the ConfigMap has the controller of {} alone", node.name), SOON, || {
                let map = it.fixture.api.read("ConfigMap", "sheave-system", "sheave-discovery")?;
                let known = map["data"]["controllers"].as_str().unwrap_or_default();
                ensure!(known.trim() == format!("{}:15010", node.addresses[0]), "{known}");
                Ok(())
            })?;
            connected(it, true)?;
            stage.follows(it)?;
        }
        Ok(())
    };
    let moved = moved();
    controllers(it, 2, "")?;
    moved?;
    shell::ready(it)?;
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}
