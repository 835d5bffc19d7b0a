//! Addresses at the edge: other ports of a VIP, unassigned ones, a node's own, claimed twice, not ours.

use anyhow::{Result, ensure};
use serde_json::json;
use sheave_harness::address::Pair;
use sheave_harness::deployment::Deployment;
use sheave_harness::objects;
use sheave_harness::testpod::protocol::{Kind, Outcome};
use sheave_harness::wait::until;

use crate::bad_input::{Complaint, conditions};
use crate::case::{Case, Proof, both, folder, kube};
use crate::check::{SOON, dropped, question, refused, served_by};
use crate::context::{Context, From, To, ports, sockets};

pub(crate) const CASES: &[Case] = &[
    both("another_port_or_protocol_of_a_cluster_ip_is_refused", other_ports),
    kube("an_address_of_the_range_that_no_service_has_is_dropped", unassigned)
        .proof(Proof::Own("dropped packets are neither translated nor accepted")),
    kube("a_load_balancer_ip_that_is_the_nodes_own_leaves_its_other_ports_alone", nodes_own_address),
    both("of_two_services_with_one_address_the_older_keeps_it", claimed_twice),
    folder("a_cluster_ip_outside_of_every_known_range_is_served", outside_ranges),
    kube("a_load_balancer_ip_without_node_ports_is_served", without_node_ports),
    kube("ip_mode_proxy_is_not_intercepted", ip_mode_proxy),
    kube("labels_that_make_a_service_not_ours_work_both_ways", not_ours),
    kube("a_cluster_ip_beats_a_load_balancer_ip_beats_an_external_ip", precedence),
];

fn other_ports(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &[objects::port("", "TCP", 80, 8080)]))?;
    for from in [From::Pod(1), From::Node(1), From::Pod(2)] {
        for target in sockets(vip, 80) {
            let sources = it.sources(from, To::ClusterIp, target.is_ipv6());
            served_by(it, it.agent(from), &question(Kind::Tcp, target), &web.names(), &sources)?;
            refused(it.agent(from), Kind::Udp, target)?;
        }
        for target in sockets(vip, 81) {
            refused(it.agent(from), Kind::Tcp, target)?;
        }
    }
    Ok(())
}

fn unassigned(it: &Context) -> Result<()> {
    for target in sockets(it.vip(), 80) {
        for from in [From::Pod(1), From::Node(2), From::Outside(1)] {
            dropped(it.agent(from), Kind::Tcp, target)?;
            dropped(it.agent(from), Kind::Udp, target)?;
        }
    }
    Ok(())
}

fn nodes_own_address(it: &Context) -> Result<()> {
    let web = it.deployment("web", 2)?;
    let node = it.node(1);
    let mut service = it.service("web", it.vip(), &web, &ports());
    service["spec"]["type"] = json!("LoadBalancer");
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": node.address.v4}, {"ip": node.address.v6}]}});
    it.apply(&service)?;
    let ssh = node.host_pod(&format!("{}-ssh", it.namespace), &[(Kind::Tcp, 22), (Kind::Udp, 123)])?;
    for from in [From::Pod(1), From::Node(1)] {
        for target in sockets(node.address, 80) {
            let sources = it.sources(from, To::Outer, target.is_ipv6());
            served_by(it, it.agent(from), &question(Kind::Tcp, target), &web.names(), &sources)?;
        }
        for (kind, port) in [(Kind::Tcp, 22), (Kind::Udp, 123)] {
            for target in sockets(node.address, port) {
                let answer = it.agent(from).ask(&question(kind, target))?;
                ensure!(answer.server.as_ref() == Some(&ssh.name), "{target} is the node's own: {answer:?}");
            }
        }
        for target in sockets(node.address, 23) {
            refused(it.agent(from), Kind::Tcp, target)?;
        }
    }
    for (kind, port) in [(Kind::Tcp, 22), (Kind::Udp, 123)] {
        for target in sockets(node.address, port) {
            let answer = it.agent(From::Outside(1)).ask(&question(kind, target))?;
            ensure!(
                answer.server.as_ref() == Some(&ssh.name),
                "{target} is the node's own, from outside too: {answer:?}"
            );
        }
    }
    Ok(())
}

/// Everyone on the nodes is served by these pods at this address.
fn expect(it: &Context, vip: Pair, of: &Deployment) -> Result<()> {
    for from in [From::Pod(1), From::Node(2)] {
        for target in sockets(vip, 80) {
            let mut sources = it.sources(from, To::ClusterIp, target.is_ipv6());
            sources.extend(it.sources(from, To::Outer, target.is_ipv6()));
            served_by(it, it.agent(from), &question(Kind::Tcp, target), &of.names(), &sources)?;
        }
    }
    Ok(())
}

fn claimed_twice(it: &Context) -> Result<()> {
    let (old, new, pair) = (it.deployment("old", 1)?, it.deployment("new", 1)?, it.external());
    let mut first = it.service("old", it.vip(), &old, &ports());
    first["spec"]["externalIPs"] = json!([pair.v4, pair.v6]);
    first["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
    it.apply(&first)?;
    expect(it, pair, &old)?;
    if it.kube.is_some() {
        // Ages count in whole seconds there; of two with one age the smaller name keeps it, and "new" is the smaller.
        let created = first_second(it)?;
        until("the next second", SOON, || {
            ensure!(objects::timestamp(0)? > created, "still the same second");
            Ok(())
        })?;
    }
    let own = it.vip();
    let mut second = it.service("new", own, &new, &ports());
    second["spec"]["externalIPs"] = json!([pair.v4, pair.v6]);
    second["metadata"]["creationTimestamp"] = json!("2021-01-01T00:00:00Z");
    let (object, keeper) = (format!("{}/new", it.namespace), format!("is kept by Service {}/old", it.namespace));
    let words = [object.as_str(), keeper.as_str()];
    let complaint = Complaint::expect(it, &words)?;
    it.apply(&second)?;
    complaint.made(it, conditions)?;
    // The younger is known once its own address is served; the shared one must still be the older's.
    expect(it, own, &new)?;
    expect(it, pair, &old)?;
    it.remove("Service", "old")?;
    expect(it, pair, &new)
}

fn first_second(it: &Context) -> Result<String> {
    let kube = it.kube.as_ref().map(|kube| kube.api.read("Service", &it.namespace, "old")).transpose()?;
    Ok(kube.and_then(|it| it["metadata"]["creationTimestamp"].as_str().map(str::to_owned)).unwrap_or_default())
}

fn ip_mode_proxy(it: &Context) -> Result<()> {
    let (web, vip, pair) = (it.deployment("web", 1)?, it.vip(), it.load_balancer());
    let mut service = it.service("web", vip, &web, &ports());
    service["spec"]["type"] = json!("LoadBalancer");
    let ingress = |ip: serde_json::Value| json!({"ip": ip, "ipMode": "Proxy"});
    service["status"] = json!({"loadBalancer": {"ingress": [ingress(json!(pair.v4)), ingress(json!(pair.v6))]}});
    it.apply(&service)?;
    expect(it, vip, &web)?;
    for target in sockets(pair, 80) {
        dropped(it.agent(From::Pod(1)), Kind::Tcp, target)?; // nobody has it here: the router's black hole
    }
    Ok(())
}

fn not_ours(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 1)?, it.vip());
    let service = it.service("web", vip, &web, &ports());
    it.apply(&service)?;
    expect(it, vip, &web)?;
    for (label, value) in
        [("service.kubernetes.io/service-proxy-name", "other"), ("service.kubernetes.io/headless", "")]
    {
        let mut labelled = service.clone();
        labelled["metadata"]["labels"] = json!({label: value});
        it.apply(&labelled)?;
        for target in sockets(vip, 80) {
            crate::check::ends_in(it.agent(From::Pod(1)), &question(Kind::Tcp, target), &Outcome::Dropped)?;
        }
        it.apply(&service)?;
        expect(it, vip, &web)?;
    }
    Ok(())
}

fn precedence(it: &Context) -> Result<()> {
    let (a, b, c) = (it.deployment("a", 1)?, it.deployment("b", 1)?, it.deployment("c", 1)?);
    let vip = it.vip();
    let mut by_external = it.service("a", it.vip(), &a, &ports());
    by_external["spec"]["externalIPs"] = json!([vip.v4, vip.v6]);
    it.apply(&by_external)?;
    expect(it, vip, &a)?;
    let mut by_balancer = it.service("b", it.vip(), &b, &ports());
    by_balancer["spec"]["type"] = json!("LoadBalancer");
    by_balancer["status"] = json!({"loadBalancer": {"ingress": [{"ip": vip.v4}, {"ip": vip.v6}]}});
    it.apply(&by_balancer)?;
    expect(it, vip, &b)?;
    it.apply(&it.service("c", vip, &c, &ports()))?;
    expect(it, vip, &c)?;
    it.remove("Service", "c")?;
    expect(it, vip, &b)?;
    Ok(())
}

fn outside_ranges(it: &Context) -> Result<()> {
    let web = it.deployment("web", 2)?;
    let vip = Pair { v4: [10, 97, 0, 9].into(), v6: [0xfd00, 0x97, 0, 0, 0, 0, 0, 9].into() };
    it.apply(&it.service("web", vip, &web, &ports()))?;
    expect(it, vip, &web)
}

fn without_node_ports(it: &Context) -> Result<()> {
    let (web, pair) = (it.deployment("web", 2)?, it.load_balancer());
    let mut service = it.service("web", it.vip(), &web, &ports());
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": pair.v4}, {"ip": pair.v6}]}});
    it.apply(&service)?;
    expect(it, pair, &web)
}
