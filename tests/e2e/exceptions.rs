//! The few ways in which the data paths may differ (SEMANTICS section 2), each shown on both.
//!
//! That the hook may keep the client's address where userspace shows the node's is in every check of source addresses; that
//! userspace loses its connections with the proxy is a fault's case.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sheave_harness::cluster::DataPath;
use sheave_harness::objects;
use sheave_harness::testpod::protocol::{Ask, Kind, Outcome};

use crate::case::{Case, kube};
use crate::check::{ends_in, expect_served, question, served_by};
use crate::context::{Context, From, To, ports, sockets};

pub(crate) const CASES: &[Case] = &[
    kube("one_client_port_towards_two_vips_of_one_backend_is_two_flows_but_for_the_hook", one_port_two_vips),
    kube("a_backend_that_refuses_shows_as_refused_in_the_hook_and_as_reset_in_userspace", backend_refuses),
];

fn one_port_two_vips(it: &Context) -> Result<()> {
    let (web, first, second) = (it.deployment("web", 1)?, it.vip(), it.vip());
    it.apply(&it.service("first", first, &web, &ports()))?;
    it.apply(&it.service("second", second, &web, &ports()))?;
    let agent = it.agent(From::Pod(2));
    for (number, (one, other)) in sockets(first, 80).into_iter().zip(sockets(second, 80)).enumerate() {
        let own = it.cluster.clients[1].address.of(one.is_ipv6());
        for target in [one, other] {
            served_by(it, agent, &question(Kind::Tcp, target), &web.names(), &[own])?;
        }
        let bind = Some(SocketAddr::new(own, 43_000 + number as u16));
        let kept = agent.open(&Ask { bind, ..Ask::new(Kind::Tcp, one) })?;
        expect_served(agent, &question(Kind::Tcp, one), &kept.answer)?;
        let again = agent.ask(&Ask { bind, ..Ask::new(Kind::Tcp, other) })?;
        match it.path() {
            DataPath::Userspace => {
                expect_served(agent, &question(Kind::Tcp, other), &again)?;
            }
            DataPath::Ebpf | DataPath::Auto => {
                // The hook has made it the very same pair of addresses and ports: EADDRNOTAVAIL.
                let taken = matches!(&again.outcome, Outcome::Failed(text) if text.contains("os error 99"));
                ensure!(taken, "the same pair twice: {again:?}");
            }
        }
        ensure!(agent.ping(kept.id)?.outcome == Outcome::Served, "the first flow was hurt by the second");
        agent.close(kept.id)?;
    }
    Ok(())
}

fn backend_refuses(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 1)?, it.vip());
    let ports = [objects::port("open", "TCP", 80, 8080), objects::port("closed", "TCP", 81, 8999)];
    it.apply(&it.service("web", vip, &web, &ports))?;
    for from in [From::Pod(1), From::Node(2)] {
        for target in sockets(vip, 80) {
            let sources = it.sources(from, To::ClusterIp, target.is_ipv6());
            served_by(it, it.agent(from), &question(Kind::Tcp, target), &web.names(), &sources)?;
        }
        let expected = if it.path() == DataPath::Userspace { Outcome::Reset } else { Outcome::Refused };
        for target in sockets(vip, 81) {
            ends_in(it.agent(from), &question(Kind::Tcp, target), &expected)?;
        }
    }
    Ok(())
}
