//! Services of type LoadBalancer, with `sheave-cloud` as the cloud.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use sheave_harness::testpod::protocol::{Kind, Outcome};
use sheave_harness::wait::until;

use crate::check::{self, SOON};
use crate::context::{Case, Context, addresses, case};

pub(crate) const CASES: &[Case] = &[
    case("a_load_balancers_address_reaches_pods_on_every_node_from_outside", outside),
    case("a_load_balancers_address_is_reached_from_inside", inside),
    case("a_closed_port_of_a_load_balancer_is_silent", closed),
];

/// The addresses that the cloud wrote.
fn given(it: &Context<'_>, name: &str) -> Result<Vec<IpAddr>> {
    until("the cloud's addresses", SOON, || {
        let object = it.fixture.api.read("Service", &it.namespace, name)?;
        let found = addresses(&object["status"]["loadBalancer"]["ingress"], |it| &it["ip"]);
        ensure!(found.len() == 2, "status {}", object["status"]);
        Ok(found)
    })
}

fn outside(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    it.service("web", "LoadBalancer")?;
    let names = deployment.names()?;
    for address in given(it, "web")? {
        for (kind, port) in [(Kind::Tcp, 80), (Kind::Udp, 53)] {
            check::served_by(&it.fixture.outside, kind, SocketAddr::new(address, port), &names)?;
        }
    }
    Ok(())
}

fn inside(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    it.service("web", "LoadBalancer")?;
    let names = deployment.names()?;
    for address in given(it, "web")? {
        for agent in it.inside() {
            check::served_by(agent, Kind::Tcp, SocketAddr::new(address, 80), &names)?;
        }
    }
    Ok(())
}

fn closed(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", 2)?;
    it.service("web", "LoadBalancer")?;
    let names = deployment.names()?;
    for address in given(it, "web")? {
        check::served_by(&it.fixture.outside, Kind::Tcp, SocketAddr::new(address, 80), &names)?;
        for kind in [Kind::Tcp, Kind::Udp] {
            check::ends_in(&it.fixture.outside, kind, SocketAddr::new(address, 81), &Outcome::Dropped)?;
        }
    }
    Ok(())
}
