//! What cases assert: who answers, from which address it looks, and how it fails.
//!
//! A change takes a moment to reach a node, so each check first waits until what it expects is there at all, and only then
//! insists: from that moment on every single answer must be right.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sheave_harness::agent::Agent;
use sheave_harness::testpod::protocol::{Answer, Ask, How, Kind, Outcome};
use sheave_harness::wait::until;

use crate::context::Context;

/// A change reaches every node well within this, on a loaded machine with debug builds.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// Right answers in a row that count as "the change has arrived": one server too many among five, chosen at random, stays
/// unseen for so long once in 10,000 times that a change is still on its way.
const ARRIVED: u64 = 40;
/// Right answers in a row once it has.
const INSISTED: u64 = 6;
/// Questions until every one of a few servers must have answered: with five servers chosen at random, all but one in
/// 10^12 such rows of questions find each of them.
const ENOUGH: u64 = 130;
/// How long silence lasts before it is called that. Everything here answers within a millisecond or two.
const SILENCE: u64 = 300;

/// A question of this kind, in the ordinary way.
pub(crate) fn question(kind: Kind, target: SocketAddr) -> Ask {
    let ask = Ask::new(kind, target);
    if kind == Kind::Udp { Ask { how: How::Unconnected, say: "ping".into(), ..ask } } else { ask }
}

/// Waits until exactly `names` answer, all of them and nobody else; then insists on that, each seeing one of `sources`.
/// What the counters do meanwhile, from then on, is the case's proof of its data path.
pub(crate) fn served_by(it: &Context, agent: &Agent, ask: &Ask, names: &[String], sources: &[IpAddr]) -> Result<()> {
    served_within(SOON, it, agent, ask, names, sources)
}

/// The same, where the change may take longer.
pub(crate) fn served_within(
    deadline: Duration,
    it: &Context,
    agent: &Agent,
    ask: &Ask,
    names: &[String],
    sources: &[IpAddr],
) -> Result<()> {
    let what = format!("{} asks {} {} and is served by {names:?}", agent.name(), ask.kind.name(), ask.target);
    // A first question may well come before its Service: it is not worth waiting for.
    let hasty = Ask { patience: SILENCE, ..ask.clone() };
    until(&what, deadline, || all_answer(agent, &hasty, names, None, ARRIVED).map(drop))?;
    let strict = || {
        all_answer(agent, ask, names, Some(sources), INSISTED).with_context(|| format!("{what}, once, but then not"))
    };
    it.counted(strict)
}

/// Asks until every one of `names` has answered, and at least `least` times; how often it did.
fn all_answer(agent: &Agent, ask: &Ask, names: &[String], sources: Option<&[IpAddr]>, least: u64) -> Result<u64> {
    let mut seen = BTreeSet::new();
    for asked in 1..=ENOUGH {
        let answer = agent.ask(ask)?;
        let server = expect_served(agent, ask, &answer)?;
        ensure!(
            names.contains(&server),
            "{} asks {}: {server} answers, not one of {names:?}",
            agent.name(),
            ask.target
        );
        if let Some(sources) = sources {
            names_are_right(agent, ask, &answer, sources)?;
        }
        seen.insert(server);
        if seen.len() == names.len() && asked >= least {
            return Ok(asked);
        }
    }
    bail!("{} asks {} {ENOUGH} times: only {seen:?} of {names:?} answer", agent.name(), ask.target)
}

/// The server's name, when one answered.
pub(crate) fn expect_served(agent: &Agent, ask: &Ask, answer: &Answer) -> Result<String> {
    match (&answer.outcome, &answer.server) {
        (Outcome::Served, Some(server)) => Ok(server.clone()),
        _ => bail!("{} asks {:?} {}: {:?}", agent.name(), ask.kind, ask.target, answer),
    }
}

/// The backend sees an address it should, and the client's own socket shows the frontend.
fn names_are_right(agent: &Agent, ask: &Ask, answer: &Answer, sources: &[IpAddr]) -> Result<()> {
    let client = answer.client.map(|client| client.ip());
    let right = client.is_some_and(|client| sources.contains(&client));
    ensure!(right, "{} asks {}: the backend sees {client:?}, not one of {sources:?}", agent.name(), ask.target);
    let peer = answer.peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    ensure!(peer == Some(ask.target), "{} asks {}: its socket's peer is {peer:?}", agent.name(), ask.target);
    Ok(())
}

/// Asks once everything has arrived, and expects this outcome twice in a row.
pub(crate) fn ends_in(agent: &Agent, ask: &Ask, outcome: &Outcome) -> Result<()> {
    let ask = if *outcome == Outcome::Dropped { Ask { patience: SILENCE, ..ask.clone() } } else { ask.clone() };
    let what = format!("{} asks {} {}: {outcome:?}", agent.name(), ask.kind.name(), ask.target);
    until(&what, SOON, || {
        let answer = agent.ask(&ask)?;
        ensure!(answer.outcome == *outcome, "{answer:?}");
        Ok(())
    })?;
    let answer = agent.ask(&ask)?;
    ensure!(answer.outcome == *outcome, "{what}, once; then {answer:?}");
    Ok(())
}

/// Expects a refusal (RST or port unreachable), not silence.
pub(crate) fn refused(agent: &Agent, kind: Kind, target: SocketAddr) -> Result<()> {
    ends_in(agent, &question(kind, target), &Outcome::Refused)
}

/// Expects silence.
pub(crate) fn dropped(agent: &Agent, kind: Kind, target: SocketAddr) -> Result<()> {
    ends_in(agent, &question(kind, target), &Outcome::Dropped)
}
