//! UDP beyond a single question: one client socket keeps one endpoint, and moves when that goes.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sheave_harness::address::Pair;
use sheave_harness::deployment::Deployment;
use sheave_harness::testpod::protocol::{Ask, How, Kind, Outcome};
use sheave_harness::wait::until;

use crate::case::{Case, kube};
use crate::check::{SOON, expect_served, question, served_by};
use crate::context::{Context, From, To, ports, sockets};

pub(crate) const CASES: &[Case] = &[
    kube("a_udp_socket_keeps_its_endpoint_while_that_stands", sticks),
    kube("an_unconnected_udp_socket_moves_when_its_endpoint_goes_and_comes_back_after_none", moves),
    kube("one_unconnected_socket_speaks_to_two_vips_and_tells_the_replies_apart", two_vips),
    kube("large_datagrams_pass_in_fragments", fragments),
];

/// A deployment behind a VIP whose UDP port is served already.
fn served(it: &Context, name: &str, count: usize) -> Result<(Deployment, Pair)> {
    let (pods, vip) = (it.deployment(name, count)?, it.vip());
    it.apply(&it.service(name, vip, &pods, &ports()))?;
    for target in sockets(vip, 53) {
        let sources = it.sources(From::Pod(1), To::ClusterIp, target.is_ipv6());
        served_by(it, it.agent(From::Pod(1)), &question(Kind::Udp, target), &pods.names(), &sources)?;
    }
    Ok((pods, vip))
}

fn ask(how: How, target: SocketAddr) -> Ask {
    Ask { how, say: "hello".into(), patience: 1000, ..Ask::new(Kind::Udp, target) }
}

fn sticks(it: &Context) -> Result<()> {
    let (mut dns, vip) = served(it, "dns", 3)?;
    let agent = it.agent(From::Pod(1));
    for target in sockets(vip, 53) {
        for how in [How::Plain, How::Unconnected] {
            let opened = agent.open(&ask(how, target))?;
            let server = expect_served(agent, &ask(how, target), &opened.answer)?;
            for _ in 0..20 {
                let again = agent.ping(opened.id)?;
                ensure!(again.server.as_ref() == Some(&server), "{how:?}: {server}, then {again:?}");
            }
            dns.scale(dns.members().len() + 1)?; // more endpoints move nobody
            for _ in 0..20 {
                let again = agent.ping(opened.id)?;
                ensure!(again.server.as_ref() == Some(&server), "{how:?}: {server}, then {again:?}");
            }
            agent.close(opened.id)?;
        }
    }
    Ok(())
}

fn moves(it: &Context) -> Result<()> {
    let (mut dns, vip) = served(it, "dns", 2)?;
    let agent = it.agent(From::Pod(1));
    for target in sockets(vip, 53) {
        dns.scale(2)?;
        let opened = agent.open(&ask(How::Unconnected, target))?;
        let server = expect_served(agent, &ask(How::Unconnected, target), &opened.answer)?;
        dns.delete(dns.position(&server)?)?;
        let left = dns.names();
        until("the socket moves to the endpoint that is left", SOON, || {
            let answer = agent.ping(opened.id)?;
            ensure!(answer.server.as_ref() == left.first(), "{answer:?}");
            Ok(())
        })?;
        dns.scale(0)?;
        until("refused while there is none", SOON, || {
            let answer = agent.ping(opened.id)?;
            ensure!(answer.outcome == Outcome::Refused, "{answer:?}");
            Ok(())
        })?;
        dns.scale(1)?;
        until("served again by a new endpoint", SOON, || {
            let answer = agent.ping(opened.id)?;
            ensure!(answer.server.as_ref() == dns.names().first(), "{answer:?}");
            Ok(())
        })?;
        agent.close(opened.id)?;
    }
    Ok(())
}

fn two_vips(it: &Context) -> Result<()> {
    let (a, first) = served(it, "a", 1)?;
    let (b, second) = served(it, "b", 1)?;
    let agent = it.agent(From::Pod(2));
    for (one, other) in sockets(first, 53).into_iter().zip(sockets(second, 53)) {
        let opened = agent.open(&ask(How::Unconnected, one))?;
        for _ in 0..3 {
            for (target, names) in [(one, a.names()), (other, b.names())] {
                let answer = agent.ping_to(opened.id, target)?;
                ensure!(answer.server.as_ref() == names.first(), "{target}: {answer:?}");
                ensure!(answer.peer == Some(target), "{target}: the reply's source is {:?}", answer.peer);
            }
        }
        agent.close(opened.id)?;
    }
    Ok(())
}

fn fragments(it: &Context) -> Result<()> {
    let (_dns, vip) = served(it, "dns", 2)?;
    for target in sockets(vip, 53) {
        for (from, length) in [(From::Pod(1), 2000), (From::Node(1), 2000), (From::Pod(2), 8000)] {
            let ask = Ask { say: "z".repeat(length), ..question(Kind::Udp, target) };
            let answer = it.agent(from).ask(&ask)?;
            ensure!(answer.outcome == Outcome::Served, "{from:?}, {length} bytes: {answer:?}");
        }
    }
    Ok(())
}
