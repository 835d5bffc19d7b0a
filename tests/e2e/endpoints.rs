//! Which pods answer: as they come, go, become ready or not, are deleted, relabelled, or share the client's address.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use sheave_harness::address::Pair;
use sheave_harness::cluster::DataPath;
use sheave_harness::deployment::{Deployment, SERVERS};
use sheave_harness::objects::{self, Phase, READY, UNREADY};
use sheave_harness::testpod::protocol::{Ask, Kind, Outcome};

use crate::case::{Case, both, kube};
use crate::check::{expect_served, question, refused, served_by};
use crate::context::{Context, From, To, ports, sockets};

pub(crate) const CASES: &[Case] = &[
    both("target_ports_by_number_and_by_name_may_differ_per_pod", target_ports),
    both("scaling_0_1_5_0_follows_and_0_is_refused", scale),
    both("readiness_flips_take_pods_out_and_in", readiness),
    kube("a_terminating_pod_keeps_its_connections_and_gets_no_new_ones", terminating),
    kube("only_terminating_pods_left_go_on_serving", only_terminating),
    both("label_and_selector_edits_move_pods_between_services", labels),
    kube("failed_and_succeeded_pods_are_left_out_and_unready_ones_published_on_request", phases),
    both("a_pod_reaches_itself_through_its_own_service", hairpin),
    kube("host_network_clients_and_backends_are_served", host_network),
];

/// Pods and nodes of both kinds are served by exactly these pods.
fn settled(it: &Context, vip: Pair, of: &[String]) -> Result<()> {
    for from in [From::Pod(1), From::Node(2)] {
        for (kind, targets) in [(Kind::Tcp, sockets(vip, 80)), (Kind::Udp, sockets(vip, 53))] {
            for target in targets {
                served_by(
                    it,
                    it.agent(from),
                    &question(kind, target),
                    of,
                    &it.sources(from, To::ClusterIp, target.is_ipv6()),
                )?;
            }
        }
    }
    Ok(())
}

fn all_refused(it: &Context, vip: Pair) -> Result<()> {
    for from in [From::Pod(1), From::Node(2), From::Outside(1)] {
        for (kind, targets) in [(Kind::Tcp, sockets(vip, 80)), (Kind::Udp, sockets(vip, 53))] {
            targets.iter().try_for_each(|&target| refused(it.agent(from), kind, target))?;
        }
    }
    Ok(())
}

fn target_ports(it: &Context) -> Result<()> {
    let mut web = it.deployment("web", 0)?;
    web.add(1, &[(Kind::Tcp, 8080), (Kind::Udp, 5353)])?;
    web.add(2, &[(Kind::Tcp, 9090), (Kind::Udp, 6363)])?;
    web.add(2, &[(Kind::Http, 8080)])?; // has no port of that name; number 8080 alone doesn't make it one
    let (named, numbered) = (it.vip(), it.vip());
    let by_name = [objects::port("a", "TCP", 80, "tcp"), objects::port("b", "UDP", 53, "udp")];
    it.apply(&it.service("named", named, &web, &by_name))?;
    settled(it, named, &web.names()[..2])?;
    let mut only = it.deployment("only", 0)?;
    only.add(1, SERVERS)?;
    it.apply(&it.service("numbered", numbered, &only, &ports()))?;
    settled(it, numbered, &only.names())
}

fn scale(it: &Context) -> Result<()> {
    let (mut web, vip) = (it.deployment("web", 0)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    all_refused(it, vip)?;
    for count in [1, 5] {
        web.scale(count)?;
        settled(it, vip, &web.names())?;
    }
    web.scale(0)?;
    all_refused(it, vip)?;
    web.scale(1)?;
    settled(it, vip, &web.names())
}

fn readiness(it: &Context) -> Result<()> {
    let (mut web, vip) = (it.deployment("web", 3)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    let names = web.names();
    settled(it, vip, &names)?;
    web.set_phase(0, UNREADY)?;
    settled(it, vip, &names[1..])?;
    web.set_phase(0, READY)?;
    web.set_phase(2, UNREADY)?;
    settled(it, vip, &names[..2])?;
    for index in 0..3 {
        web.set_phase(index, UNREADY)?;
    }
    all_refused(it, vip)?;
    web.set_phase(1, READY)?;
    settled(it, vip, &names[1..2])
}

fn terminating(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    let names = web.names();
    settled(it, vip, &names)?;
    let agent = it.agent(From::Pod(1));
    let mut kept = Vec::new();
    for target in sockets(vip, 80) {
        for _ in 0..8 {
            let opened = agent.open(&Ask::new(Kind::Tcp, target))?;
            expect_served(agent, &question(Kind::Tcp, target), &opened.answer)?;
            agent.beat(opened.id, Duration::from_millis(20))?;
            kept.push(opened);
        }
    }
    let doomed = kept.iter().filter(|it| it.answer.server.as_ref() == Some(&names[0])).count();
    ensure!(doomed > 0, "none of {} connections went to the pod that is to end", kept.len());
    web.terminate(0, 30)?;
    settled(it, vip, &names[1..])?;
    for opened in kept {
        let beats = agent.beat_stop(opened.id)?;
        ensure!(beats.failure.is_none(), "{opened:?}: {beats:?}");
        let answer = agent.ping(opened.id)?;
        ensure!(answer.outcome == Outcome::Served, "{opened:?}: {answer:?}");
        agent.close(opened.id)?;
    }
    Ok(())
}

fn only_terminating(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    settled(it, vip, &web.names())?;
    web.terminate(0, 30)?;
    settled(it, vip, &web.names()[1..])?;
    web.terminate(1, 30)?;
    settled(it, vip, &web.names())
}

fn labels(it: &Context) -> Result<()> {
    let (mut a, b) = (it.deployment("a", 2)?, it.deployment("b", 1)?);
    let (first, second) = (it.vip(), it.vip());
    it.apply(&it.service("a", first, &a, &ports()))?;
    let mut service = it.service("b", second, &b, &ports());
    it.apply(&service)?;
    settled(it, first, &a.names())?;
    settled(it, second, &b.names())?;
    a.relabel(0, &json!({"app": "b"}))?;
    settled(it, first, &a.names()[1..])?;
    settled(it, second, &[b.names(), a.names()[..1].to_vec()].concat())?;
    service["spec"]["selector"] = json!({"app": "a"});
    it.apply(&service)?;
    settled(it, second, &a.names()[1..])
}

fn phases(it: &Context) -> Result<()> {
    let (mut web, vip) = (it.deployment("web", 3)?, it.vip());
    let mut service = it.service("web", vip, &web, &ports());
    it.apply(&service)?;
    let names = web.names();
    settled(it, vip, &names)?;
    web.set_phase(0, Phase { phase: "Succeeded", ready: false })?;
    web.set_phase(1, UNREADY)?;
    settled(it, vip, &names[2..])?;
    service["spec"]["publishNotReadyAddresses"] = json!(true);
    it.apply(&service)?;
    settled(it, vip, &names[1..])
}

/// A pod behind a VIP as the only one of its Service, asking that VIP; its own address as source must not break it.
fn loops_back(it: &Context, web: &Deployment, vip: Pair) -> Result<()> {
    let pod = &web.members()[0].pod;
    for (kind, targets) in [(Kind::Tcp, sockets(vip, 80)), (Kind::Udp, sockets(vip, 53))] {
        for target in targets {
            let own = pod.address.of(target.is_ipv6());
            let node = pod.node.address.of(target.is_ipv6());
            let sources: Vec<IpAddr> = if it.path() == DataPath::Ebpf { vec![own, node] } else { vec![node] };
            served_by(it, &pod.agent, &question(kind, target), &web.names(), &sources)?;
        }
    }
    Ok(())
}

fn hairpin(it: &Context) -> Result<()> {
    let (mut web, vip) = (it.deployment("web", 1)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    settled(it, vip, &web.names())?;
    loops_back(it, &web, vip)?;
    // With a second pod beside it, some of its connections come back to itself and some don't.
    web.scale(2)?;
    let agent = &web.members()[0].pod.agent;
    for target in sockets(vip, 80) {
        let pod = &web.members()[0].pod;
        let sources = [pod.address.of(target.is_ipv6()), pod.node.address.of(target.is_ipv6())];
        served_by(it, agent, &question(Kind::Tcp, target), &web.names(), &sources)?;
    }
    Ok(())
}

fn host_network(it: &Context) -> Result<()> {
    let (mut web, vip) = (it.deployment("web", 0)?, it.vip());
    let servers = [(Kind::Tcp, 18_080), (Kind::Udp, 15_353)];
    web.add_on_host(1, &servers)?;
    web.add_on_host(2, &servers)?;
    let ports = [objects::port("a", "TCP", 80, "tcp"), objects::port("b", "UDP", 53, 15_353)];
    it.apply(&it.service("web", vip, &web, &ports))?;
    settled(it, vip, &web.names())?;
    // The node that is the backend as its own client: the same address on both ends.
    for number in [1, 2] {
        for (kind, targets) in [(Kind::Tcp, sockets(vip, 80)), (Kind::Udp, sockets(vip, 53))] {
            for target in targets {
                let from = From::Node(number);
                let sources = it.sources(from, To::ClusterIp, target.is_ipv6());
                served_by(it, it.agent(from), &question(kind, target), &web.names(), &sources)?;
            }
        }
    }
    Ok(())
}
