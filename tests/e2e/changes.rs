//! Services that change: what is new works, what is gone is refused, and nobody else notices.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_harness::address::Pair;
use sheave_harness::objects;
use sheave_harness::testpod::protocol::{Ask, Kind};

use crate::case::{Case, both, kube};
use crate::check::{dropped, question, refused, served_by};
use crate::context::{Context, From, To, ports, sockets};

pub(crate) const CASES: &[Case] = &[
    both("a_service_recreated_with_another_vip_leaves_the_old_one", recreate),
    kube("a_vip_moves_from_one_service_to_another", vip_moves),
    kube("ports_are_added_removed_renumbered_and_swap_protocol", ports_change),
    both("types_change_from_cluster_ip_to_load_balancer_and_back_to_external_name", types_change),
];

fn settled(it: &Context, kind: Kind, vip: Pair, port: u16, names: &[String]) -> Result<()> {
    for from in [From::Pod(1), From::Node(2)] {
        for target in sockets(vip, port) {
            let mut sources = it.sources(from, To::ClusterIp, target.is_ipv6());
            sources.extend(it.sources(from, To::Outer, target.is_ipv6()));
            served_by(it, it.agent(from), &question(kind, target), names, &sources)?;
        }
    }
    Ok(())
}

fn recreate(it: &Context) -> Result<()> {
    let (web, bystander) = (it.deployment("web", 2)?, it.deployment("bystander", 1)?);
    let (old, new, quiet) = (it.vip(), it.vip(), it.vip());
    it.apply(&it.service("bystander", quiet, &bystander, &ports()))?;
    it.apply(&it.service("web", old, &web, &ports()))?;
    settled(it, Kind::Tcp, old, 80, &web.names())?;
    settled(it, Kind::Tcp, quiet, 80, &bystander.names())?;
    let agent = it.agent(From::Pod(2));
    let watch = agent.load_start(Ask::new(Kind::Hello, sockets(quiet, 80)[0]), 50)?;
    it.remove("Service", "web")?;
    for target in sockets(old, 80) {
        // Nobody has it any more, and it is inside the range.
        dropped(it.agent(From::Pod(1)), Kind::Tcp, target)?;
    }
    it.apply(&it.service("web", new, &web, &ports()))?;
    settled(it, Kind::Tcp, new, 80, &web.names())?;
    settled(it, Kind::Udp, new, 53, &web.names())?;
    let report = agent.load_stop(watch)?;
    ensure!(report.failed() == 0 && report.asked > 0, "a bystander noticed: {report:?}");
    Ok(())
}

fn vip_moves(it: &Context) -> Result<()> {
    let (a, b, vip) = (it.deployment("a", 1)?, it.deployment("b", 1)?, it.external());
    let with = |mut service: Value| {
        service["spec"]["externalIPs"] = json!([vip.v4, vip.v6]);
        service
    };
    let (first, second) = (it.service("a", it.vip(), &a, &ports()), it.service("b", it.vip(), &b, &ports()));
    it.apply(&with(first.clone()))?;
    it.apply(&second)?;
    settled(it, Kind::Tcp, vip, 80, &a.names())?;
    it.apply(&first)?;
    it.apply(&with(second))?;
    settled(it, Kind::Tcp, vip, 80, &b.names())
}

fn ports_change(it: &Context) -> Result<()> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    let names = web.names();
    let apply = |ports: &[Value]| it.apply(&it.service("web", vip, &web, ports));
    apply(&[objects::port("a", "TCP", 80, 8080)])?;
    settled(it, Kind::Tcp, vip, 80, &names)?;
    apply(&[objects::port("a", "TCP", 80, 8080), objects::port("b", "TCP", 81, 8080)])?;
    settled(it, Kind::Tcp, vip, 81, &names)?;
    settled(it, Kind::Tcp, vip, 80, &names)?;
    apply(&[objects::port("b", "TCP", 82, 8080)])?; // one removed, one renumbered
    settled(it, Kind::Tcp, vip, 82, &names)?;
    for port in [80, 81] {
        for target in sockets(vip, port) {
            refused(it.agent(From::Pod(1)), Kind::Tcp, target)?;
        }
    }
    apply(&[objects::port("b", "UDP", 82, 5353)])?;
    settled(it, Kind::Udp, vip, 82, &names)?;
    for target in sockets(vip, 82) {
        refused(it.agent(From::Pod(1)), Kind::Tcp, target)?;
    }
    Ok(())
}

fn types_change(it: &Context) -> Result<()> {
    let (web, vip, balancer, number) = (it.deployment("web", 2)?, it.vip(), it.load_balancer(), it.node_port());
    let names = web.names();
    let plain = it.service("web", vip, &web, &[objects::port("", "TCP", 80, 8080)]);
    it.apply(&plain)?;
    settled(it, Kind::Tcp, vip, 80, &names)?;

    let mut service = plain.clone();
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(number);
    it.apply(&service)?;
    let node = it.node(1).address;
    let asks = |pair: Pair, port: u16| -> Result<()> {
        for target in sockets(pair, port) {
            let from = From::Pod(1);
            served_by(
                it,
                it.agent(from),
                &question(Kind::Tcp, target),
                &names,
                &it.sources(from, To::Outer, target.is_ipv6()),
            )?;
        }
        Ok(())
    };
    asks(node, number)?;

    service["spec"]["type"] = json!("LoadBalancer");
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": balancer.v4}, {"ip": balancer.v6}]}});
    it.apply(&service)?;
    asks(balancer, 80)?;
    asks(node, number)?;

    let mut back = plain.clone();
    back["status"] = json!({"loadBalancer": {}});
    it.apply(&back)?;
    settled(it, Kind::Tcp, vip, 80, &names)?;
    for target in sockets(node, number) {
        refused(it.agent(From::Pod(1)), Kind::Tcp, target)?;
    }
    for target in sockets(balancer, 80) {
        dropped(it.agent(From::Pod(1)), Kind::Tcp, target)?;
    }

    it.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": it.namespace},
        "spec": {"type": "ExternalName", "externalName": "somewhere.example"},
    }))?;
    for target in sockets(vip, 80) {
        dropped(it.agent(From::Pod(1)), Kind::Tcp, target)?;
    }
    Ok(())
}
