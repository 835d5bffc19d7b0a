//! The eBPF path against a pod's own address, and 10,000 Services against one.

use anyhow::{Result, ensure};

use super::{Context, Limit, node};
use crate::agent::Ask;
use crate::report::Row;
use crate::rounds::{Kind, compare};
use crate::server::{ECHO_PORT, PORT};
use crate::stack::{Plan, Stack};

const CONNECT: Limit = Limit::ratio("ebpf connect", 1.05);
const ROUND_TRIPS: Limit = Limit::ratio("ebpf round trips", 1.03);
const MANY: Limit = Limit::ratio("ebpf 10000 services connect", 1.03);

/// This group's rows.
pub(super) const LIMITS: &[Limit] = &[CONNECT, ROUND_TRIPS, MANY];

/// Rounds per comparison: more than the 100 that a limit under 5 % asks for, since a round takes 50 ms only.
const ROUNDS: usize = 200;
/// Connections per block: about 15 ms.
const CONNECTIONS: u32 = 300;
/// Round trips per block: about 15 ms.
const TRIPS: u32 = 800;

/// Measures them.
pub(super) fn measure(context: &Context<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let plan = |node, services| Plan { node, datapath: "ebpf", services, flags: &[] };
    let one = Stack::build(context.world, &plan(node::EBPF_ONE, 1))?;
    if context.wants(&CONNECT) {
        rows.push(connect(&one)?);
    }
    if context.wants(&ROUND_TRIPS) {
        rows.push(round_trips(&one)?);
    }
    if context.wants(&MANY) {
        context.say("10000 Services for the eBPF path");
        let many = Stack::build(context.world, &plan(node::EBPF_MANY, 10_000))?;
        rows.push(many_services(&one, &many)?);
    }
    Ok(())
}

fn connect(one: &Stack) -> Result<Row> {
    let direct = || one.client.connects(one.far(PORT), CONNECTIONS);
    let service = || one.client.connects(one.service(1), CONNECTIONS);
    let measured =
        hooked(one, || compare(Kind::Connections, ROUNDS, Box::new(direct), Box::new(direct), Box::new(service)))?;
    Ok(CONNECT.compared("ClusterIP", "pod IP", &measured))
}

fn round_trips(one: &Stack) -> Result<Row> {
    let targets = [one.far(ECHO_PORT), one.far(ECHO_PORT), one.service_echo()];
    // New connections for every block: a connection keeps the luck of its ports (which queue, which cache lines).
    let block = |slot: u32| {
        one.client.ask(&Ask::Open { slot, to: targets[slot as usize] })?;
        one.client.block(&Ask::RoundTrips { slot, count: TRIPS }, TRIPS)
    };
    let measured = hooked(one, || {
        compare(Kind::RoundTrips, ROUNDS, Box::new(|| block(0)), Box::new(|| block(1)), Box::new(|| block(2)))
    })?;
    one.client.ask(&Ask::Release)?;
    Ok(ROUND_TRIPS.compared("ClusterIP", "pod IP", &measured))
}

fn many_services(one: &Stack, many: &Stack) -> Result<Row> {
    let few = || one.client.connects(one.service(1), CONNECTIONS);
    // A Service of its own in every block: one that is hot in the caches would hide what a large map costs.
    let mut next = 0;
    let all = || {
        next = next % 9_999 + 1;
        many.client.connects(many.service(next), CONNECTIONS)
    };
    let measured = hooked(many, || compare(Kind::Connections, ROUNDS, Box::new(few), Box::new(few), Box::new(all)))?;
    Ok(MANY.compared("10000 Services", "1 Service", &measured))
}

/// Runs a comparison and makes sure that the hook did it: its counter rose and the listeners accepted nothing.
fn hooked<T>(stack: &Stack, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let counters = || -> Result<(f64, f64)> {
        Ok((stack.counter("sheave_hook_translations_total")?, stack.counter("sheave_listener_accepts_total")?))
    };
    let before = counters()?;
    let result = run()?;
    let after = counters()?;
    ensure!(after.0 > before.0, "the hook translated nothing: {before:?} -> {after:?}");
    ensure!(after.1 <= before.1, "the listeners accepted connections: {before:?} -> {after:?}");
    Ok(result)
}
