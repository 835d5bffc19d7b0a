//! Services inside the cluster and by their NodePorts.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sheave_harness::testpod::protocol::{Kind, Outcome};

use crate::check;
use crate::context::{Case, Context, case};

pub(crate) const CASES: &[Case] = &[
    case("a_cluster_ip_reaches_pods_on_every_node_from_everywhere_inside", cluster_ip),
    case("a_node_port_of_every_node_reaches_pods_on_all_from_outside", node_port),
    case("a_node_port_is_reached_from_inside", node_port_inside),
    case("a_service_scaled_to_zero_refuses_and_serves_again", scaled_to_zero),
    case("a_deleted_service_is_no_longer_served", deleted),
];

fn cluster_ip(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 4)?;
    let service = it.service("web", "ClusterIP")?;
    let names = deployment.names()?;
    for agent in it.inside() {
        for (kind, port) in [(Kind::Tcp, 80), (Kind::Udp, 53)] {
            for target in service.sockets(port) {
                check::served_by(agent, kind, target, &names)?;
            }
        }
    }
    Ok(())
}

fn node_port(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    let service = it.service("web", "NodePort")?;
    let names = deployment.names()?;
    for (kind, port) in [Kind::Tcp, Kind::Udp].into_iter().zip(service.node_ports) {
        for address in it.nodes().iter().flat_map(|node| node.addresses) {
            check::served_by(&it.fixture.outside, kind, SocketAddr::new(address, port), &names)?;
        }
    }
    Ok(())
}

fn node_port_inside(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    let service = it.service("web", "NodePort")?;
    let names = deployment.names()?;
    for agent in it.inside() {
        for address in it.nodes().iter().flat_map(|node| node.addresses) {
            check::served_by(agent, Kind::Tcp, SocketAddr::new(address, service.node_ports[0]), &names)?;
        }
    }
    Ok(())
}

fn scaled_to_zero(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    let service = it.service("web", "NodePort")?;
    let node_port = SocketAddr::new(it.nodes()[0].addresses[0], service.node_ports[0]);
    let everyone = |names: &[String]| -> Result<()> {
        for agent in it.inside() {
            for target in service.sockets(80) {
                if names.is_empty() {
                    check::ends_in(agent, Kind::Tcp, target, &Outcome::Refused)?;
                } else {
                    check::served_by(agent, Kind::Tcp, target, names)?;
                }
            }
        }
        Ok(())
    };
    everyone(&deployment.names()?)?;
    deployment.scale(0)?;
    everyone(&[])?;
    check::ends_in(&it.fixture.outside, Kind::Tcp, node_port, &Outcome::Refused)?;
    deployment.scale(2)?;
    let names = deployment.names()?;
    ensure!(names.len() == 2, "scaled to two, but {names:?} are ready");
    everyone(&names)?;
    check::served_by(&it.fixture.outside, Kind::Tcp, node_port, &names)
}

/// What becomes of a cluster IP that nobody has is the network's business: silence or a refusal. Only an answer is wrong.
fn deleted(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    let service = it.service("web", "NodePort")?;
    let names = deployment.names()?;
    let outside = &it.fixture.outside;
    let node_port = SocketAddr::new(it.nodes()[1].addresses[0], service.node_ports[0]);
    check::served_by(outside, Kind::Tcp, node_port, &names)?;
    for target in service.sockets(80) {
        check::served_by(&it.nodes()[0].pod, Kind::Tcp, target, &names)?;
    }
    it.fixture.api.delete("Service", &it.namespace, "web", 0)?;
    check::ends_in(outside, Kind::Tcp, node_port, &Outcome::Refused)?;
    for agent in it.inside() {
        for target in service.sockets(80) {
            check::unserved(agent, target)?;
        }
    }
    Ok(())
}
