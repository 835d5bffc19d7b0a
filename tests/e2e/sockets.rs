//! Sockets of every kind, and the names they show: the client must not notice that its VIP is none.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use sheave_harness::testpod::protocol::{Ask, How, Kind};

use crate::case::{Case, kube};
use crate::check::{expect_served, question, served_by};
use crate::context::{Context, From, To, ports, sockets};

pub(crate) const CASES: &[Case] = &[
    kube("mapped_nonblocking_bound_and_fastopen_tcp_sockets_are_served", tcp_sockets),
    kube("connected_unconnected_mapped_and_bound_udp_sockets_are_served", udp_sockets),
    kube("half_closed_connections_deliver_all_bytes_both_ways", half_close),
];

/// Two pods behind a VIP that is already served.
fn web(it: &Context) -> Result<(sheave_harness::deployment::Deployment, [SocketAddr; 2], [SocketAddr; 2])> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    for (kind, targets) in [(Kind::Tcp, sockets(vip, 80)), (Kind::Udp, sockets(vip, 53))] {
        for target in targets {
            let from = From::Pod(1);
            let sources = it.sources(from, To::ClusterIp, target.is_ipv6());
            served_by(it, it.agent(from), &question(kind, target), &web.names(), &sources)?;
        }
    }
    Ok((web, sockets(vip, 80), sockets(vip, 53)))
}

fn own(it: &Context, v6: bool) -> IpAddr {
    it.cluster.clients[0].address.of(v6)
}

fn tcp_sockets(it: &Context) -> Result<()> {
    let (web, targets, _) = web(it)?;
    let agent = it.agent(From::Pod(1));
    for (number, target) in targets.into_iter().enumerate() {
        let plain = Ask::new(Kind::Tcp, target);
        let bound = SocketAddr::new(own(it, target.is_ipv6()), 41_000 + number as u16);
        let mut asks = vec![
            Ask { how: How::Nonblocking, ..plain.clone() },
            Ask { how: How::FastOpen, say: "early".into(), ..plain.clone() },
            Ask { say: "x".repeat(100_000), ..plain.clone() },
            Ask { bind: Some(bound), ..plain.clone() },
        ];
        if target.is_ipv4() {
            let mapped = Ask { mapped: true, ..plain };
            asks.push(Ask { how: How::Nonblocking, ..mapped.clone() });
            asks.push(Ask { how: How::FastOpen, say: "early".into(), ..mapped.clone() });
            asks.push(mapped);
        }
        for ask in asks {
            let answer = agent.ask(&ask)?;
            let server = expect_served(agent, &ask, &answer)?;
            ensure!(web.names().contains(&server), "{server} answers");
            let peer = answer.peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
            ensure!(peer == Some(target), "{:?} mapped {}: getpeername shows {peer:?}", ask.how, ask.mapped);
            if let Some(bound) = ask.bind {
                ensure!(answer.client == Some(bound), "bound to {bound}, seen as {:?}", answer.client);
            }
        }
    }
    Ok(())
}

fn udp_sockets(it: &Context) -> Result<()> {
    let (web, _, targets) = web(it)?;
    let agent = it.agent(From::Pod(1));
    for (number, target) in targets.into_iter().enumerate() {
        let bound = SocketAddr::new(own(it, target.is_ipv6()), 42_000 + number as u16);
        for how in [How::Plain, How::Unconnected] {
            for mapped in [false, target.is_ipv4()] {
                for bind in [None, Some(bound)] {
                    let ask = Ask { how, mapped, bind, say: "a datagram".into(), ..Ask::new(Kind::Udp, target) };
                    let answer = agent.ask(&ask)?;
                    let server = expect_served(agent, &ask, &answer)?;
                    ensure!(web.names().contains(&server), "{server} answers");
                    ensure!(answer.peer == Some(target), "{ask:?}: the reply's source is {:?}", answer.peer);
                }
            }
        }
    }
    Ok(())
}

fn half_close(it: &Context) -> Result<()> {
    let (_web, targets, _) = web(it)?;
    let agent = it.agent(From::Pod(1));
    for target in targets {
        let say = "y".repeat(300_000);
        let opened = agent.open(&Ask { say: say.clone(), ..Ask::new(Kind::Tcp, target) })?;
        expect_served(agent, &question(Kind::Tcp, target), &opened.answer)?;
        let rest = agent.finish(opened.id)?;
        ensure!(rest == format!("end {}\n", say.len()), "after the half-close: {rest:?}");
        agent.close(opened.id)?;
    }
    Ok(())
}
