//! The cluster's own DNS, and the Service of the API server: what every program in a cluster starts with.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use sheave_harness::testpod::protocol::{Kind, Outcome};
use sheave_harness::wait::until;

use crate::check::{self, SOON};
use crate::context::{Case, Context, case};

pub(crate) const CASES: &[Case] = &[
    case("pods_on_every_node_find_a_service_by_its_names", names),
    case("pods_on_every_node_reach_a_service_by_its_name", by_name),
    case("a_headless_service_names_its_pods", headless),
    case("pods_on_every_node_reach_the_kubernetes_service", kubernetes),
];

fn names(it: &Context<'_>) -> Result<()> {
    let service = it.service("web", "ClusterIP")?;
    let mut wanted = service.cluster_ips;
    wanted.sort();
    let long = format!("web.{}.svc.cluster.local", it.namespace);
    for name in [format!("web.{}", it.namespace), format!("web.{}.svc", it.namespace), long.clone(), format!("{long}.")]
    {
        for agent in it.inside() {
            until(&format!("{} looks {name} up", agent.name()), SOON, || {
                let mut found = agent.resolve(&name)?;
                found.sort();
                ensure!(found == wanted, "{found:?}, not {wanted:?}");
                Ok(())
            })?;
        }
    }
    let nobody = format!("nobody.{}.svc.cluster.local", it.namespace);
    let found = it.nodes()[0].pod.resolve(&nobody);
    ensure!(found.is_err(), "{nobody} exists: {found:?}");
    Ok(())
}

fn by_name(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    it.service("web", "ClusterIP")?;
    let names = deployment.names()?;
    for agent in it.inside() {
        let found = until("the name", SOON, || agent.resolve(&format!("web.{}", it.namespace)))?;
        ensure!(found.len() == 2, "not an address of each family: {found:?}");
        for address in found {
            check::served_by(agent, Kind::Tcp, SocketAddr::new(address, 80), &names)?;
        }
    }
    Ok(())
}

fn headless(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    it.fixture.api.apply(&serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": it.namespace},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "tcp", "port": 80, "targetPort": 8080}]},
    }))?;
    let names = deployment.names()?;
    for node in it.nodes() {
        let found = until("both pods' addresses", SOON, || {
            let found = node.pod.resolve(&format!("web.{}", it.namespace))?;
            ensure!(found.len() == names.len(), "{found:?}");
            Ok(found)
        })?;
        for address in found {
            let answer = node.pod.tcp(SocketAddr::new(address, 8080))?;
            let server = check::server(&node.pod, &answer)?;
            ensure!(names.contains(&server), "{server} answers at {address}, not one of {names:?}");
        }
    }
    Ok(())
}

/// An API server that is spoken to without TLS says 400, which nothing else on the way would.
fn kubernetes(it: &Context<'_>) -> Result<()> {
    for agent in it.inside() {
        let found: Vec<IpAddr> = until("the name", SOON, || agent.resolve("kubernetes.default"))?;
        ensure!(!found.is_empty(), "no address");
        for address in found {
            check::ends_in(agent, Kind::Http, SocketAddr::new(address, 443), &Outcome::Status(400))?;
        }
    }
    Ok(())
}
