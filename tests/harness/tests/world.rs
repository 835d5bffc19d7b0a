//! The test world by itself, with none of the product in it: pods of two nodes reach each other, and nothing is left of it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave_harness::run::{self, Run};
use sheave_harness::testpod::protocol::{Ask, How, Kind, Outcome};
use sheave_harness::wait::until;
use sheave_harness::world::World;
use sheave_harness::{cgroup, sys};

/// As an argument: build a small world, say so, and wait to be ended.
const IDLE: &str = "idle";

#[expect(clippy::print_stdout, reason = "a test program with a main of its own reports by itself")]
fn main() -> Result<()> {
    if !sys::is_root() {
        println!("not root, so network namespaces can't be made: left out");
        return Ok(());
    }
    let run = run::enter()?;
    if std::env::args().nth(1).as_deref() == Some(IDLE) {
        return idle(&run);
    }
    let world = World::build(&run, 2)?;
    for (claim, test) in TESTS {
        let start = Instant::now();
        test(&world)?;
        println!("{claim} ... ok ({:.1} s)", start.elapsed().as_secs_f64());
    }
    Ok(())
}

type Test = fn(&World) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("pods_of_two_nodes_reach_each_other_and_keep_their_addresses", pods_reach_each_other),
    ("a_closed_port_is_refused_and_an_unassigned_address_is_silent", refused_is_not_dropped),
    ("kept_connections_echo_half_close_and_beat", kept_connections),
    ("a_load_counts_every_connection", load_counts),
    ("two_runs_side_by_side_end_by_signal_and_leave_nothing", side_by_side),
    ("what_a_killed_run_leaves_goes_at_the_next_start", killed_run),
];

fn pods_reach_each_other(world: &World) -> Result<()> {
    let servers = [(Kind::Tcp, 8080), (Kind::Http, 80), (Kind::Udp, 5353)];
    let server = world.node(1).pod("server", &servers)?;
    let client = world.node(2).pod("client", &[])?;
    for address in server.address.both() {
        let own = client.address.of(address.is_ipv6());
        for (kind, port) in servers {
            for (how, mapped) in [(How::Plain, false), (How::Nonblocking, false), (How::Plain, address.is_ipv4())] {
                let ask = Ask { how, mapped, ..Ask::new(kind, SocketAddr::new(address, port)) };
                let answer = client.agent.ask(&ask)?;
                ensure!(answer.outcome == Outcome::Served, "{ask:?}: {answer:?}");
                ensure!(answer.server.as_deref() == Some("server"), "{ask:?}: {answer:?}");
                ensure!(answer.client.map(|it| it.ip()) == Some(own), "{ask:?}: {answer:?}");
            }
        }
        let unconnected = client.agent.udp(SocketAddr::new(address, 5353))?;
        ensure!(unconnected.peer.map(|it| it.ip()) == Some(address), "{unconnected:?}");
        for agent in [&world.node(1).agent, &world.node(2).agent, &world.outside[0].agent] {
            let answer = agent.tcp(SocketAddr::new(address, 8080))?;
            ensure!(answer.outcome == Outcome::Served, "{}: {answer:?}", agent.name());
        }
        let fast =
            Ask { how: How::FastOpen, say: "hello".into(), ..Ask::new(Kind::Tcp, SocketAddr::new(address, 8080)) };
        ensure!(client.agent.ask(&fast)?.outcome == Outcome::Served, "fast open");
    }
    let records = server.agent.records()?;
    ensure!(records.iter().all(|record| record.peers.contains_key(&client.address.v4.into())), "{records:?}");
    Ok(())
}

fn refused_is_not_dropped(world: &World) -> Result<()> {
    let server = world.node(1).pod("server", &[])?;
    let client = world.node(2).pod("client", &[])?;
    for address in server.address.both() {
        for answer in [client.agent.tcp(SocketAddr::new(address, 81))?, client.agent.udp(SocketAddr::new(address, 81))?]
        {
            ensure!(answer.outcome == Outcome::Refused, "{answer:?}");
        }
    }
    for nobody in ["10.96.3.3:80", "[fd00:96::33]:80", "8.8.8.8:53"] {
        for kind in [Kind::Tcp, Kind::Udp] {
            let ask = Ask { patience: 300, ..Ask::new(kind, nobody.parse()?) };
            let answer = client.agent.ask(&ask)?;
            ensure!(answer.outcome == Outcome::Dropped, "{nobody}: {answer:?}");
        }
    }
    Ok(())
}

fn kept_connections(world: &World) -> Result<()> {
    let server = world.node(1).pod("server", &[(Kind::Tcp, 80)])?;
    let client = world.node(1).pod("client", &[])?;
    let ask = Ask { say: "hello".into(), ..Ask::new(Kind::Tcp, SocketAddr::new(server.address.v4.into(), 80)) };
    let opened = client.agent.open(&ask)?;
    ensure!(client.agent.ping(opened.id)?.outcome == Outcome::Served, "ping");
    client.agent.beat(opened.id, Duration::from_millis(1))?;
    ensure!(client.agent.beat_stop(opened.id)?.failure.is_none(), "beat");
    ensure!(client.agent.finish(opened.id)?.starts_with("end "), "half close");
    let doomed = client.agent.open(&ask)?;
    server.agent.kill()?;
    let answer = client.agent.ping(doomed.id)?;
    ensure!(answer.outcome == Outcome::Reset || answer.outcome == Outcome::Closed, "{answer:?}");
    Ok(())
}

fn load_counts(world: &World) -> Result<()> {
    let server = world.node(1).pod("server", &[(Kind::Hello, 80)])?;
    let client = world.node(2).pod("client", &[])?;
    let load = client.agent.load_start(Ask::new(Kind::Hello, SocketAddr::new(server.address.v6.into(), 80)), 500)?;
    until("300 connections", Duration::from_secs(5), || {
        let report = client.agent.load_report(load)?;
        ensure!(report.asked >= 300, "{report:?}");
        Ok(())
    })?;
    let report = client.agent.load_stop(load)?;
    ensure!(report.failed() == 0 && report.servers["server"].count == report.asked, "{report:?}");
    let noted: u64 = server.agent.records()?.iter().flat_map(|record| record.peers.values()).sum();
    ensure!(noted == report.asked, "{noted} noted, {report:?}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "its parent waits for this line")]
fn idle(run: &Run) -> Result<()> {
    let _world = World::build(run, 1)?;
    println!("{}", run.id);
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// A run of its own, started from inside this one, and what it leaves on the machine while it runs.
struct Other {
    supervisor: Child,
    cgroup: PathBuf,
    folder: PathBuf,
}

impl Other {
    fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(IDLE).env_remove("SHEAVE_RUN_STAGE").stdout(Stdio::piped());
        let mut supervisor = command.spawn()?;
        let mut id = String::new();
        BufReader::new(supervisor.stdout.take().context("output")?).read_line(&mut id)?;
        let name = format!("sheave-{}", id.trim());
        let (cgroup, folder) = (cgroup::mount_point()?.join(&name), std::env::temp_dir().join(&name));
        ensure!(cgroup.is_dir() && folder.is_dir(), "{name} is not there");
        Ok(Self { supervisor, cgroup, folder })
    }

    fn populated(&self) -> Result<bool> {
        Ok(std::fs::read_to_string(self.cgroup.join("cgroup.events"))?.contains("populated 1"))
    }

    fn left(&self) -> bool {
        self.cgroup.exists() || self.folder.exists()
    }
}

fn side_by_side(_: &World) -> Result<()> {
    let (mut one, mut other) = (Other::start()?, Other::start()?);
    ensure!(one.populated()? && other.populated()?, "both run");
    for (run, signal) in [(&mut one, libc::SIGINT), (&mut other, libc::SIGTERM)] {
        sys::kill(run.supervisor.id(), signal)?;
        run.supervisor.wait()?;
        ensure!(!run.left(), "{} or {} is left", run.cgroup.display(), run.folder.display());
    }
    Ok(())
}

fn killed_run(_: &World) -> Result<()> {
    let mut killed = Other::start()?;
    killed.supervisor.kill()?;
    killed.supervisor.wait()?;
    until("its processes end with it", Duration::from_secs(5), || {
        ensure!(!killed.populated()?, "some still run");
        Ok(())
    })?;
    ensure!(killed.left(), "a killed supervisor can't have cleaned up");
    run::remove_leftovers()?;
    ensure!(!killed.left(), "{} or {} is left", killed.cgroup.display(), killed.folder.display());
    Ok(())
}
