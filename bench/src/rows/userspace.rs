//! The userspace path against the smallest blocking proxy and against haproxy, each behind the product's own rules on a node
//! of its own, and what 100,000 connections leave behind.
//!
//! A sheave-proxy programs each node; on those of the other two it is then killed, which leaves its rules in the kernel, and
//! the other proxy listens where it did. Every proxy has one thread, on the same CPU.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, Limit, cpu, node};
use crate::agent::{Ask, Server};
use crate::haproxy;
use crate::report::Row;
use crate::rounds::{Kind, compare};
use crate::server::{PORT, STREAM_PORT};
use crate::stack::{Plan, Stack};
use crate::usage::Memory;

const CONNECT: Limit = Limit::ratio("userspace connect", 1.10);
const UP: Limit = Limit::ratio("userspace stream up", 1.0);
const DOWN: Limit = Limit::ratio("userspace stream down", 1.0);
const LEAK: Limit = Limit::ratio("memory after 100000 connections", 1.10);

/// This group's rows.
pub(super) const LIMITS: &[Limit] = &[CONNECT, UP, DOWN, LEAK];

/// Rounds with new connections. The rules ask for 40; many short ones are less at the mercy of what else runs.
const ROUNDS: usize = 300;
/// Connections per block: about 8 ms.
const CONNECTIONS: u32 = 60;
/// Rounds with streams; the rules ask for 100 where a limit is under 5 %.
const STREAM_ROUNDS: usize = 320;
/// Bytes per block: about 20 ms.
const BYTES: u64 = 16 * 1024 * 1024;
/// Bytes before them, which open the windows and are not measured.
const FIRST_BYTES: u64 = 4 * 1024 * 1024;
/// One thread, as the proxies that it is compared with have.
const FLAGS: &[&str] = &["--threads", "1"];
/// Where the rules of a node send connections.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15_001);
/// The mark of a proxy's own sockets, which the rules skip.
const OWN_MARK: u32 = 0x0020_0000;

/// Measures them.
pub(super) fn measure(context: &Context<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let build = |node| Stack::build(context.world, &Plan { node, datapath: "userspace", services: 1, flags: FLAGS });
    let ours = build(node::USERSPACE_ONE)?;
    ours.pin_proxy()?;
    if context.wants(&CONNECT) {
        rows.push(connect(&ours, build(node::PLAIN)?)?);
    }
    if context.wants(&UP) || context.wants(&DOWN) {
        rows.extend(streams(context, &ours, build(node::HAPROXY)?)?);
    }
    if context.wants(&LEAK) {
        context.say("100000 connections");
        rows.push(leak(&ours)?);
    }
    Ok(())
}

fn connect(ours: &Stack, mut plain: Stack) -> Result<Row> {
    plain.leave_rules()?;
    let flag = |name: &str, value: String| [format!("--{name}"), value];
    let mut arguments = vec!["plain-proxy".to_owned()];
    arguments.extend(flag("listen", LISTEN.to_string()));
    arguments.extend(flag("backend", plain.far(PORT).to_string()));
    arguments.extend(flag("mark", OWN_MARK.to_string()));
    arguments.extend(flag("cpu", cpu().to_string()));
    let _proxy = Server::start(&plain.node.system(), &arguments)?;

    let theirs = || plain.client.connects(plain.service(1), CONNECTIONS);
    let mine = || ours.client.connects(ours.service(1), CONNECTIONS);
    let measured =
        accepted(ours, || compare(Kind::Connections, ROUNDS, Box::new(theirs), Box::new(theirs), Box::new(mine)))?;
    Ok(CONNECT.compared("sheave-proxy", "plain proxy", &measured))
}

fn streams(context: &Context<'_>, ours: &Stack, mut haproxy: Stack) -> Result<Vec<Row>> {
    haproxy.leave_rules()?;
    haproxy::lend_mark(&haproxy.node, haproxy.far(STREAM_PORT), OWN_MARK)?;
    let folder = context.world.run.logs();
    let process = haproxy::start(&haproxy.node.system(), &folder, LISTEN, haproxy.far(STREAM_PORT))?;
    crate::sys::pin_process(process.id(), cpu())?;
    let block = |stack: &Stack, ask: fn(u64) -> Ask| {
        stack.client.ask(&Ask::Open { slot: 0, to: stack.service_stream() })?;
        stack.client.ask(&ask(FIRST_BYTES))?;
        stack.client.block(&ask(BYTES), 1)
    };
    let mut rows = Vec::new();
    let up = |bytes| Ask::Upload { slot: 0, bytes };
    let down = |bytes| Ask::Download { slot: 0, bytes };
    let directions = [(&UP, up as fn(u64) -> Ask), (&DOWN, down)];
    for (limit, ask) in directions {
        if !context.wants(limit) {
            continue;
        }
        let theirs = || block(&haproxy, ask);
        let mine = || block(ours, ask);
        let measured = accepted(ours, || {
            compare(Kind::Streams, STREAM_ROUNDS, Box::new(theirs), Box::new(theirs), Box::new(mine))
        })?;
        let rate = |ns: f64| BYTES as f64 / ns * 8.0; // bytes per nanosecond are GB/s
        let note = format!("{:.1} vs {:.1} Gbit/s", rate(measured.ours_ns), rate(measured.reference_ns));
        rows.push(limit.compared("sheave-proxy", "haproxy", &measured).noted(&note));
    }
    for stack in [ours, &haproxy] {
        stack.client.ask(&Ask::Release)?;
    }
    Ok(rows)
}

/// What is resident after 100,000 connections, against what was before them.
fn leak(ours: &Stack) -> Result<Row> {
    const WARM: u32 = 2_000;
    const ALL: u32 = 100_000;
    let pid = ours.proxy()?.id();
    let settled = || {
        std::thread::sleep(Duration::from_secs(5));
        Memory::of(pid)
    };
    ours.client.connects(ours.service(1), WARM)?;
    let before = settled()?;
    for _ in 0..ALL / WARM {
        ours.client.connects(ours.service(1), WARM)?;
    }
    let after = settled()?;
    let note = format!("{:.1} MiB, then {:.1} MiB", before.resident, after.resident);
    Ok(LEAK.number("sheave-proxy", &[after.resident / before.resident]).against("before").noted(&note))
}

/// Runs a comparison and makes sure that the listener did it, and no hook.
fn accepted<T>(stack: &Stack, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let accepts = || stack.counter("sheave_listener_accepts_total");
    let before = accepts()?;
    let result = run()?;
    let after = accepts()?;
    ensure!(after > before, "the listener accepted nothing: {before} -> {after}");
    let attached = sheave_harness::metrics::attached(&stack.node)?;
    ensure!(attached == 0, "{attached} programs are attached to the node's cgroup");
    Ok(result)
}
