//! `sheave-demo`: the main job on this machine, shown and checked. Two nodes in network namespaces, a folder of YAML as the
//! source of truth, every Service type, scaling, a pod deleted under load. `--up` leaves it running, `--down` ends that.

#![expect(clippy::print_stdout, reason = "a demo shows what it does")]

mod report;
mod stage;
mod story;
mod up;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use sheave_harness::run;

use report::Report;
use stage::Stage;

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        None => demo(),
        // Test pods are this program too; `run::enter` knows them by their first argument.
        Some(up::STAY | sheave_harness::testpod::ARGUMENT) => up::stay().map(|()| ExitCode::SUCCESS),
        Some("--up") => up::up().map(|()| ExitCode::SUCCESS),
        Some("--down") => up::down().map(|()| ExitCode::SUCCESS),
        Some(other) => bail!("unknown argument '{other}'; use none, --up or --down"),
    }
}

fn demo() -> Result<ExitCode> {
    let run = run::enter()?;
    let begun = Instant::now();
    let mut report = Report::new();
    report.section("Two nodes, a controller over a folder of YAML, a proxy on each node");
    let mut stage = Stage::set(&run)?;
    if let Err(error) = story::tell(&mut stage, &mut report) {
        println!("{}", stage.cluster.logs(25));
        return Err(error);
    }
    report.section("Everything is taken away again");
    story::clean(stage, &mut report)?;
    println!("\ntook {:.0} s", begun.elapsed().as_secs_f64());
    Ok(report.finish())
}
