//! What the dashboard is about: connections by both paths, answers that fail, changes, an object that is left out.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use sheave_harness::agent::Agent;
use sheave_harness::objects;
use sheave_harness::testpod::protocol::{Ask, Kind, Outcome};

use crate::check::{self, question};
use crate::context::{Context, Service};

/// Connections a second of each load: enough for a rate, little enough for a loaded machine.
const RATE: u32 = 5;

/// Loads that run until they are stopped.
pub(crate) struct Traffic<'a> {
    it: &'a Context<'a>,
    running: Vec<(&'a Agent, u64)>,
    changes: u16,
}

impl<'a> Traffic<'a> {
    /// To a Service that answers: from a pod of each node by its ClusterIP, and from outside by NodePort, TCP and UDP.
    pub(crate) fn good(it: &'a Context<'a>) -> Result<Self> {
        let web = it.deployment("web", 2)?;
        let service = it.service("web", "NodePort")?;
        let names = web.names()?;
        let mut loads: Vec<(&Agent, Ask)> = Vec::new();
        for (node, target) in it.nodes().iter().zip(service.sockets(80)) {
            loads.push((&node.pod, question(Kind::Tcp, target)));
        }
        for (kind, port) in [Kind::Tcp, Kind::Udp].into_iter().zip(&service.node_ports) {
            for node in it.nodes() {
                loads.push((&it.fixture.outside, question(kind, SocketAddr::new(node.addresses[0], *port))));
            }
        }
        for (agent, ask) in &loads {
            check::served_by(agent, ask.kind, ask.target, &names)?;
        }
        let mut traffic = Self { it, running: Vec::new(), changes: 0 };
        loads.into_iter().try_for_each(|(agent, ask)| traffic.start(agent, ask))?;
        Ok(traffic)
    }

    fn start(&mut self, agent: &'a Agent, ask: Ask) -> Result<()> {
        self.running.push((agent, agent.load_start(ask, RATE)?));
        Ok(())
    }

    /// To Services that can't answer: `refusing`, whose pods have nothing at the port, and `empty`, which has no pods. From pods
    /// and from outside.
    pub(crate) fn bad(&mut self) -> Result<()> {
        let it = self.it;
        for (name, selector) in [("refusing", "web"), ("empty", "nobody")] {
            it.fixture.api.apply(&broken(&it.namespace, name, selector))?;
            let service = Service::read(&it.fixture.api, &it.namespace, name)?;
            let inside = service.sockets(80)[0];
            check::ends_in(&it.nodes()[0].pod, Kind::Tcp, inside, &Outcome::Refused)?;
            self.start(&it.nodes()[0].pod, question(Kind::Tcp, inside))?;
            for node in it.nodes() {
                let outside = SocketAddr::new(node.addresses[0], service.node_ports[0]);
                self.start(&it.fixture.outside, question(Kind::Tcp, outside))?;
            }
        }
        Ok(())
    }

    /// Two Services want one address: the younger doesn't get it, and is told so.
    pub(crate) fn rejected(&self) -> Result<()> {
        for name in ["older", "younger"] {
            let mut object = broken(&self.it.namespace, name, "web");
            object["spec"]["externalIPs"] = json!(["192.0.2.77"]);
            self.it.fixture.api.apply(&object)?;
        }
        Ok(())
    }

    /// Something that every node has to be told.
    pub(crate) fn change(&mut self) -> Result<()> {
        self.changes += 1;
        let ports = json!([objects::port("tcp", "TCP", 1000 + self.changes % 100, 8080)]);
        let mut object = broken(&self.it.namespace, "changing", "web");
        object["spec"]["ports"] = ports;
        object["spec"]["type"] = json!("ClusterIP");
        self.it.fixture.api.apply(&object)
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        for (agent, id) in self.running.drain(..) {
            let _ = agent.load_stop(id); // what a load met is Prometheus' to say
        }
    }
}

/// A Service towards a port at which no test pod listens.
fn broken(namespace: &str, name: &str, selector: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "NodePort", "selector": {"app": selector}, "ports": [objects::port("tcp", "TCP", 80, 9)]},
    })
}
