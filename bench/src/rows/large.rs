//! The userspace path with 10,000 Services: the time to program them, descriptors, what a connection costs, and how many
//! connections are held through it.

use anyhow::{Context as _, Result, bail};

use super::{Context, Limit, node};
use crate::agent::{Ask, Said};
use crate::report::Row;
use crate::rounds::{Kind, compare};
use crate::stack::{Plan, Stack};
use crate::usage;

const PROGRAMMED: Limit = Limit::at_most("userspace 10000 services programmed", "s", 5.0);
const DESCRIPTORS: Limit = Limit::at_most("userspace 10000 services descriptors", "open", 1000.0);
const CONNECT: Limit = Limit::ratio("userspace 10000 services connect", 1.10);
const HELD: Limit = Limit::at_least("userspace connections held", "connections", 8000.0);

/// This group's rows.
pub(super) const LIMITS: &[Limit] = &[PROGRAMMED, DESCRIPTORS, CONNECT, HELD];

/// How many Services; with two families that makes 20,000 frontends.
const SERVICES: u16 = 10_000;
/// Rounds of the comparison. The rules ask for 40; many short ones are less at the mercy of what else runs.
const ROUNDS: usize = 300;
/// Connections per block: about 8 ms.
const CONNECTIONS: u32 = 60;

/// Measures them.
pub(super) fn measure(context: &Context<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let plan = |node, services, flags| Plan { node, datapath: "userspace", services, flags };
    let many = Stack::build(context.world, &plan(node::USERSPACE_MANY, SERVICES, &[]))?;
    for number in (1..=SERVICES).rev().step_by(199) {
        many.client.connects(many.service(number), 1).with_context(|| format!("Service {number} is programmed"))?;
    }
    if context.wants(&PROGRAMMED) {
        let row = PROGRAMMED.number("20000 frontends", &[many.programmed.as_secs_f64()]);
        rows.push(row.noted("from the start of a proxy without a state"));
    }
    if context.wants(&DESCRIPTORS) {
        rows.push(DESCRIPTORS.number("sheave-proxy", &[usage::descriptors(many.proxy()?.id())? as f64]));
    }
    if context.wants(&HELD) {
        rows.push(held(&many)?);
    }
    if context.wants(&CONNECT) {
        let one = Stack::build(context.world, &plan(node::USERSPACE_FEW, 1, &[]))?;
        rows.push(connect(&one, &many)?);
    }
    Ok(())
}

/// Opens connections in steps, then passes one more byte over every one of them.
fn held(many: &Stack) -> Result<Row> {
    const ALL: u32 = 8_000;
    let to = many.service_echo();
    let (opened, error) = match many.client.ask(&Ask::Hold { to, count: ALL })? {
        Said::Held { working, first_error } => (working, first_error),
        other => bail!("unexpected answer {other:?}"),
    };
    let working = many.client.held(&Ask::CheckHeld)?;
    let open = usage::descriptors(many.proxy()?.id())?;
    many.client.ask(&Ask::Release)?;
    let note = format!("{opened} opened, {open} descriptors in the proxy; {}", error.unwrap_or_default());
    Ok(HELD.number("sheave-proxy", &[f64::from(working)]).noted(note.trim_end_matches("; ")))
}

fn connect(one: &Stack, many: &Stack) -> Result<Row> {
    one.pin_proxy()?;
    many.pin_proxy()?;
    let few = || one.client.connects(one.service(1), CONNECTIONS);
    // A Service of its own in every block: one that is hot in the caches would hide what a large table costs.
    let mut next = 0;
    let all = || {
        next = next % (SERVICES - 1) + 1;
        many.client.connects(many.service(next), CONNECTIONS)
    };
    let measured = compare(Kind::Connections, ROUNDS, Box::new(few), Box::new(few), Box::new(all))?;
    Ok(CONNECT.compared("10000 Services", "1 Service", &measured))
}
