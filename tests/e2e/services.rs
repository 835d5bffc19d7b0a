//! The four kinds of address a Service has, for every kind of client, in TCP, UDP and HTTP.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_harness::address::Pair;
use sheave_harness::deployment::Deployment;
use sheave_harness::objects;
use sheave_harness::testpod::protocol::{Ask, Kind, Outcome};

use crate::case::{Case, Proof, both, kube};
use crate::check::{ends_in, expect_served, question, served_by};
use crate::context::{Context, From, INSIDE, To, ports, sockets};

/// From outside machines there is no socket hook to pass.
const NO_HOOK: Proof = Proof::Listener("packets from outside pass no socket hook");
/// L7 is what the hook leaves alone.
const L7: Proof = Proof::Listener("a frontend that needs L7 is left to the listeners");

pub(crate) const CASES: &[Case] = &[
    both("cluster_ip_tcp_reaches_every_endpoint_from_pods_and_nodes", |it| cluster_ip(it, Kind::Tcp, 80)),
    both("cluster_ip_udp_reaches_every_endpoint_from_pods_and_nodes", |it| cluster_ip(it, Kind::Udp, 53)),
    kube("cluster_ip_is_served_to_machines_outside_with_the_nodes_address", cluster_ip_outside).proof(NO_HOOK),
    kube("node_port_tcp_is_served_to_pods_and_nodes_and_on_localhost", |it| node_port(it, Kind::Tcp)),
    kube("node_port_udp_is_served_to_pods_and_nodes_and_on_localhost", |it| node_port(it, Kind::Udp)),
    both("node_port_is_served_to_machines_outside_on_every_node", node_port_outside).proof(NO_HOOK),
    kube("load_balancer_ip_tcp_and_udp_are_served_to_pods_and_nodes", |it| outer(it, &INSIDE, load_balancer)),
    kube("load_balancer_ip_is_served_to_machines_outside", |it| outer(it, &OUTSIDE, load_balancer)).proof(NO_HOOK),
    kube("external_ip_tcp_and_udp_are_served_to_pods_and_nodes", |it| outer(it, &INSIDE, external_ip)),
    kube("external_ip_is_served_to_machines_outside", |it| outer(it, &OUTSIDE, external_ip)).proof(NO_HOOK),
    both("http_chooses_a_backend_per_request_and_says_503_without_one", http).proof(L7),
    both("multi_port_services_keep_their_ports_apart", multi_port),
];

const OUTSIDE: [From; 2] = [From::Outside(1), From::Outside(2)];
const PROTOCOLS: [(Kind, u16); 2] = [(Kind::Tcp, 80), (Kind::Udp, 53)];

/// Everyone in `clients` reaches both endpoints of `pair` on this port, with the right source addresses.
fn all_served(
    it: &Context,
    clients: &[From],
    to: To,
    kind: Kind,
    pair: Pair,
    port: u16,
    of: &Deployment,
) -> Result<()> {
    for target in sockets(pair, port) {
        for &from in clients {
            let sources = it.sources(from, to, target.is_ipv6());
            served_by(it, it.agent(from), &question(kind, target), &of.names(), &sources)?;
        }
    }
    Ok(())
}

fn cluster_ip(it: &Context, kind: Kind, port: u16) -> Result<()> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    all_served(it, &INSIDE, To::ClusterIp, kind, vip, port, &web)?;
    let asked = web.asked(kind)?;
    ensure!(asked.iter().all(|(_, count)| *count > 0), "the servers' own records: {asked:?}");
    Ok(())
}

fn cluster_ip_outside(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    PROTOCOLS.iter().try_for_each(|&(kind, port)| all_served(it, &OUTSIDE, To::ClusterIp, kind, vip, port, &web))
}

/// A NodePort Service; the ports that its TCP and UDP have on every node.
fn with_node_port(it: &Context, web: &Deployment) -> Result<[(Kind, u16); 2]> {
    let numbers = [(Kind::Tcp, it.node_port()), (Kind::Udp, it.node_port())];
    let mut ports = ports();
    for (port, (_, number)) in ports.iter_mut().zip(numbers) {
        port["nodePort"] = json!(number);
    }
    let mut service = it.service("web", it.vip(), web, &ports);
    service["spec"]["type"] = json!("NodePort");
    it.apply(&service)?;
    Ok(numbers)
}

fn node_port(it: &Context, kind: Kind) -> Result<()> {
    let web = it.deployment("web", 2)?;
    let numbers = with_node_port(it, &web)?;
    let port = if kind == Kind::Udp { numbers[1].1 } else { numbers[0].1 };
    for number in [1, 2] {
        let clients = [From::Pod(number), From::Node(number)];
        all_served(it, &clients, To::Outer, kind, it.node(number).address, port, &web)?;
        let localhost = Pair { v4: [127, 0, 0, 1].into(), v6: 1_u128.to_be_bytes().into() };
        all_served(it, &[From::Node(number)], To::Outer, kind, localhost, port, &web)?;
    }
    Ok(())
}

fn node_port_outside(it: &Context) -> Result<()> {
    let web = it.deployment("web", 2)?;
    for (kind, port) in with_node_port(it, &web)? {
        for (from, node) in [(From::Outside(1), 1), (From::Outside(2), 2)] {
            all_served(it, &[from], To::Outer, kind, it.node(node).address, port, &web)?;
        }
    }
    Ok(())
}

/// Gives a Service one more address, and says which.
type Addressed = fn(&Context, &mut Value) -> Pair;

fn load_balancer(it: &Context, service: &mut Value) -> Pair {
    let pair = it.load_balancer();
    service["spec"]["type"] = json!("LoadBalancer");
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": pair.v4}, {"ip": pair.v6}]}});
    pair
}

fn external_ip(it: &Context, service: &mut Value) -> Pair {
    let pair = it.external();
    service["spec"]["externalIPs"] = json!([pair.v4, pair.v6]);
    pair
}

fn outer(it: &Context, clients: &[From], addressed: Addressed) -> Result<()> {
    let web = it.deployment("web", 2)?;
    let mut service = it.service("web", it.vip(), &web, &ports());
    let pair = addressed(it, &mut service);
    it.apply(&service)?;
    PROTOCOLS.iter().try_for_each(|&(kind, port)| all_served(it, clients, To::Outer, kind, pair, port, &web))
}

fn http(it: &Context) -> Result<()> {
    let (mut web, vip) = (it.deployment("web", 2)?, it.vip());
    let mut port = objects::port("http", "TCP", 80, "http");
    port["appProtocol"] = json!("http");
    it.apply(&it.service("web", vip, &web, &[port]))?;
    let nodes: Vec<_> = it.cluster.world.nodes.iter().flat_map(|node| node.address.both()).collect();
    for target in sockets(vip, 80) {
        for from in INSIDE {
            // An HTTP proxy talks to its backends itself: its node's address is right, and so is the client's.
            let mut sources = nodes.clone();
            sources.extend(it.sources(from, To::ClusterIp, target.is_ipv6()));
            served_by(it, it.agent(from), &question(Kind::Http, target), &web.names(), &sources)?;
        }
        let agent = it.agent(From::Pod(1));
        let opened = agent.open(&Ask::new(Kind::Http, target))?;
        expect_served(agent, &question(Kind::Http, target), &opened.answer)?;
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            let answer = agent.ping(opened.id)?;
            seen.insert(expect_served(agent, &question(Kind::Http, target), &answer)?);
        }
        ensure!(seen.len() == 2, "60 requests on one connection all went to {seen:?}");
        agent.close(opened.id)?;
    }
    web.scale(0)?;
    for target in sockets(vip, 80) {
        ends_in(it.agent(From::Pod(1)), &question(Kind::Http, target), &Outcome::Status(503))?;
    }
    Ok(())
}

fn multi_port(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 1)?, it.vip());
    let other = it.deployment("other", 1)?;
    // TCP 53 and UDP 53 of one address are two frontends; a second Service on other ports is a third party.
    let ports = [
        objects::port("dns-tcp", "TCP", 53, 8080),
        objects::port("dns", "UDP", 53, "udp"),
        objects::port("hello", "TCP", 9000, "hello"),
    ];
    it.apply(&it.service("web", vip, &web, &ports))?;
    let second = it.vip();
    it.apply(&it.service("other", second, &other, &[objects::port("", "TCP", 53, 8080)]))?;
    for (kind, port) in [(Kind::Tcp, 53), (Kind::Udp, 53), (Kind::Hello, 9000)] {
        all_served(it, &[From::Pod(1), From::Node(2)], To::ClusterIp, kind, vip, port, &web)?;
    }
    all_served(it, &[From::Pod(1)], To::ClusterIp, Kind::Tcp, second, 53, &other)
}
