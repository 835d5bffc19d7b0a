//! Traffic that goes on while something is done to the cluster: new connections at a steady rate, and held ones that are used
//! all the time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sheave_harness::agent::Agent;
use sheave_harness::cluster::DataPath;
use sheave_harness::testpod::protocol::{Ask, Kind, LoadReport, Outcome};

use crate::check;
use crate::context::{Context, Service};

/// New connections a second of each client.
pub(crate) const RATE: u32 = 40;
/// Connections that each client holds.
const HELD: usize = 5;
/// Between two round trips on a held one.
const BEAT: Duration = Duration::from_millis(200);
/// A delayed connection is not a failed one: SYNs are sent again after 1, 3, 7 and 15 s (RFC 6298).
const PATIENCE: u64 = 25_000;
/// A proxy that ends loses what its listeners carry at that moment. A question takes a few milliseconds, so that is one or two of
/// a client's; these are as many as begin in a quarter of a second.
const CARRIED: u64 = RATE as u64 / 4;

/// A client and what it asks.
struct Client<'a> {
    agent: &'a Agent,
    target: SocketAddr,
    /// Whether a proxy carries its connections, rather than a hook having sent them straight to a backend.
    carried: bool,
    load: u64,
    held: Vec<Held>,
}

struct Held {
    id: u64,
    server: String,
}

/// All of it.
pub(crate) struct Traffic<'a> {
    clients: Vec<Client<'a>>,
    since: Instant,
    /// Whether every proxy's end is part of the case.
    proxies_end: bool,
}

impl<'a> Traffic<'a> {
    /// To this Service (TCP 80): from a pod of each node, of one by IPv4 and of the next by IPv6, and where it has a NodePort from
    /// the outside machine to the first node's. All of `names` must answer before it begins.
    pub(crate) fn start(it: &'a Context<'_>, service: &Service, names: &[String]) -> Result<Self> {
        let outside = service.node_ports.first().map(|port| SocketAddr::new(it.nodes()[0].addresses[0], *port));
        let pods = it.nodes().iter().map(|node| &node.pod).zip(service.sockets(80).into_iter().cycle());
        let targets: Vec<_> = pods.chain(outside.map(|target| (&it.fixture.outside, target))).collect();
        Self::between(it, &targets, names)
    }

    /// From these clients to these addresses.
    pub(crate) fn between(it: &Context<'_>, targets: &[(&'a Agent, SocketAddr)], names: &[String]) -> Result<Self> {
        for (agent, target) in targets {
            check::served_by(agent, Kind::Tcp, *target, names)?;
        }
        let outside = it.fixture.outside.name();
        let start = |(agent, target): &(&'a Agent, SocketAddr)| -> Result<Client<'a>> {
            let carried = it.path == Some(DataPath::Userspace) || agent.name() == outside;
            let ask = Ask { patience: PATIENCE, ..check::question(Kind::Tcp, *target) };
            let held = (0..HELD).map(|_| hold(agent, *target)).collect::<Result<_>>()?;
            Ok(Client { agent, target: *target, carried, load: agent.load_start(ask, RATE)?, held })
        };
        let clients = targets.iter().map(start).collect::<Result<_>>()?;
        Ok(Self { clients, since: Instant::now(), proxies_end: false })
    }

    /// Proxies end in this case: what a listener carries at that moment is lost, new connections wait, and none is refused.
    pub(crate) fn though_proxies_end(mut self) -> Self {
        self.proxies_end = true;
        self
    }

    /// Something else than Sheave serves as it begins, in the kernel alone.
    pub(crate) fn carried_by_nobody(mut self) -> Self {
        self.clients.iter_mut().for_each(|client| client.carried = false);
        self
    }

    /// Ends it; no connection failed, and none that was held to one of `living` broke.
    pub(crate) fn unharmed(mut self, living: &[String]) -> Result<Vec<LoadReport>> {
        let wanted = self.since.elapsed().as_secs() * u64::from(RATE) * 8 / 10;
        let (proxies_end, mut reports, mut complaints) = (self.proxies_end, Vec::new(), Vec::new());
        for client in std::mem::take(&mut self.clients) {
            let spared = client.carried && proxies_end;
            let report = client.agent.load_stop(client.load)?;
            let what =
                format!("{} to {}: {} asked, {:?}", client.agent.name(), client.target, report.asked, report.outcomes);
            let judged = if spared { lost_little(&report) } else { lost_none(&report) };
            complaints.extend(judged.err().map(|error| format!("{what}: {error:#}")));
            if report.asked < wanted.max(20) {
                complaints.push(format!("{what}: too few to mean anything, {wanted} wanted"));
            }
            for held in client.held {
                let beats = client.agent.beat_stop(held.id)?;
                client.agent.close(held.id)?;
                if let Some(failure) = beats.failure.filter(|_| !spared && living.contains(&held.server)) {
                    let rounds = beats.rounds;
                    complaints
                        .push(format!("{what}: one held to {} broke after {rounds} rounds: {failure}", held.server));
                }
            }
            println!("    {what}, longest delay {:.0} ms", report.longest);
            reports.push(report);
        }
        ensure!(complaints.is_empty(), "{}", complaints.join("\n    "));
        Ok(reports)
    }
}

/// A case that fails before it has asked how its traffic went leaves none behind.
impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        for client in &self.clients {
            let _ = client.agent.load_stop(client.load); // whatever it met: the case has failed already
            for held in &client.held {
                let _ = client.agent.beat_stop(held.id);
                let _ = client.agent.close(held.id);
            }
        }
    }
}

fn hold(agent: &Agent, target: SocketAddr) -> Result<Held> {
    let opened = agent.open(&check::question(Kind::Tcp, target))?;
    let server = check::server(agent, &opened.answer)?;
    agent.beat(opened.id, BEAT)?;
    Ok(Held { id: opened.id, server })
}

fn lost_none(report: &LoadReport) -> Result<()> {
    ensure!(report.failed() == 0, "{} failed: {:?}", report.failed(), report.failures);
    Ok(())
}

fn lost_little(report: &LoadReport) -> Result<()> {
    let lost: u64 = [Outcome::Reset, Outcome::Closed]
        .iter()
        .filter_map(|outcome| report.outcomes.get(&format!("{outcome:?}")))
        .sum();
    ensure!(lost == report.failed(), "failed otherwise than by a carrying proxy's end: {:?}", report.failures);
    ensure!(lost <= CARRIED, "{lost} were open when proxies ended, at most {CARRIED} expected: {:?}", report.failures);
    Ok(())
}
