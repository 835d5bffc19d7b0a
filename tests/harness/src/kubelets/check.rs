//! What cases assert: who answers, and how it fails. Changes take a moment, so each check waits until what it expects is there at
//! all, and only then insists.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::agent::Agent;
use crate::testpod::protocol::{Answer, Ask, How, Kind, Outcome};
use crate::wait::until;

/// A change reaches every node well within this, on a loaded machine.
pub const SOON: Duration = Duration::from_secs(20);
/// Questions until each of a few servers must have answered: with five chosen at random, all but one in 10^12 rows of questions
/// find each of them.
const ENOUGH: u64 = 130;
/// Questions that are asked at least: one that should not answer any more, among two, is missed once in a million rows.
const LEAST: u64 = 20;
/// Milliseconds of silence that are called that.
const SILENCE: u64 = 500;

/// A question of this kind, in the ordinary way.
pub fn question(kind: Kind, target: SocketAddr) -> Ask {
    let ask = Ask::new(kind, target);
    if kind == Kind::Udp { Ask { how: How::Unconnected, say: "ping".into(), ..ask } } else { ask }
}

/// Waits until exactly `names` answer, all of them and nobody else; then insists on it.
pub fn served_by(agent: &Agent, kind: Kind, target: SocketAddr, names: &[String]) -> Result<()> {
    served_within(SOON, agent, kind, target, names)
}

/// [`served_by`], where it may take so long.
pub fn served_within(
    deadline: Duration,
    agent: &Agent,
    kind: Kind,
    target: SocketAddr,
    names: &[String],
) -> Result<()> {
    let ask = question(kind, target);
    let what = format!("{} asks {} {target} and is served by {names:?}", agent.name(), kind.name());
    let hasty = Ask { patience: SILENCE, ..ask.clone() };
    until(&what, deadline, || all_answer(agent, &hasty, names))?;
    all_answer(agent, &ask, names).with_context(|| format!("{what}, once, but then not"))
}

fn all_answer(agent: &Agent, ask: &Ask, names: &[String]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for asked in 1..=ENOUGH {
        let server = server(agent, &agent.ask(ask)?)?;
        ensure!(
            names.contains(&server),
            "{} asks {}: {server} answers, not one of {names:?}",
            agent.name(),
            ask.target
        );
        seen.insert(server);
        if seen.len() == names.len() && asked >= LEAST {
            return Ok(());
        }
    }
    bail!("{} asks {} {ENOUGH} times: only {seen:?} of {names:?} answer", agent.name(), ask.target)
}

/// The server's name, when one answered.
pub fn server(agent: &Agent, answer: &Answer) -> Result<String> {
    match (&answer.outcome, &answer.server) {
        (Outcome::Served, Some(server)) => Ok(server.clone()),
        _ => bail!("{}: {answer:?}", agent.name()),
    }
}

/// Waits for this outcome, and insists on it.
pub fn ends_in(agent: &Agent, kind: Kind, target: SocketAddr, outcome: &Outcome) -> Result<()> {
    let mut ask = question(kind, target);
    if *outcome == Outcome::Dropped {
        ask.patience = SILENCE;
    }
    let what = format!("{} asks {} {target}: {outcome:?}", agent.name(), kind.name());
    let once = || {
        let answer = agent.ask(&ask)?;
        ensure!(answer.outcome == *outcome, "{answer:?}");
        Ok(())
    };
    until(&what, SOON, once)?;
    once().with_context(|| format!("{what}, once, but then not"))
}

/// Waits until nobody answers there any more, however that shows, and insists on it.
pub fn unserved(agent: &Agent, target: SocketAddr) -> Result<()> {
    let ask = Ask { patience: SILENCE, ..question(Kind::Tcp, target) };
    let once = || {
        let answer = agent.ask(&ask)?;
        ensure!(answer.outcome != Outcome::Served, "{answer:?}");
        Ok(())
    };
    let what = format!("{} asks {target}, which is gone", agent.name());
    until(&what, SOON, once)?;
    once().with_context(|| format!("{what}, once, but then not"))
}
