//! `sheave-e2e-cluster`: cases on the real cluster of `make cluster-up`, with whatever serves its Services.
//!
//! It runs in the cluster's world (`tests/cluster/in world`), where the API server and the nodes can be reached. Clients are pods on
//! every node, pods on the nodes' own network, and a machine outside; they are this same program, in the image
//! `localhost/testpod:dev`, and are commanded over unix sockets on the nodes' disks, so that no command depends on what is tested.
#![expect(clippy::print_stdout, reason = "a test program reports on standard output")]

mod audit;
mod bootstrap;
mod context;
mod dns;
mod faults;
mod load_balancer;
mod monitoring;
mod nodes;
mod pages;
mod rollout;
mod services;
mod serving;
mod shell;
mod subscriber;
mod switch;
mod traffic;
mod trust;
mod upgrade;
mod webhook;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use sheave_harness::cluster::DataPath;
use sheave_harness::kubelets::fixture::Fixture;
use sheave_harness::kubelets::{check, fixture, workload}; // the cases' parts, by the names that they use
use sheave_harness::testpod;

use crate::context::{Case, Context};

/// Which part of the cases to run.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases whose name contains one of these parts (separated by commas).
    #[arg(long, default_value = "")]
    cases: String,
    /// Data paths to run them on, where Sheave serves Services.
    #[arg(long, default_value = "ebpf,userspace")]
    paths: String,
    /// Leave the long cases out, and say which they are.
    #[arg(long)]
    short: bool,
    /// Name the cases and run none.
    #[arg(long)]
    list: bool,
    /// The running cluster's folder.
    #[arg(long, default_value_os_t = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster"))]
    state: PathBuf,
}

/// Every case of every topic, in the order of the run: what takes Sheave away and installs it again comes last.
fn table() -> impl Iterator<Item = &'static Case> {
    let topics: [&[Case]; 13] = [
        dns::CASES,
        services::CASES,
        load_balancer::CASES,
        webhook::CASES,
        monitoring::CASES,
        rollout::CASES,
        upgrade::CASES,
        faults::CASES,
        nodes::CASES,
        bootstrap::CASES,
        trust::CASES,
        pages::CASES,
        audit::CASES,
    ];
    topics.into_iter().flatten()
}

/// The data paths in a list; one that nobody takes where something else than Sheave serves.
fn paths(list: &str, fixture: &Fixture) -> Result<Vec<Option<DataPath>>> {
    if !serving::is_sheave(fixture)? {
        return Ok(vec![None]);
    }
    let named = |name: &str| match name {
        "ebpf" => Ok(Some(DataPath::Ebpf)),
        "userspace" => Ok(Some(DataPath::Userspace)),
        _ => bail!("--paths {name}: choose from ebpf,userspace"),
    };
    list.split(',').map(str::trim).map(named).collect()
}

/// Runs a case, and says how it ended.
fn run(fixture: &Fixture, case: &Case, number: usize, path: Option<DataPath>) -> Result<(), String> {
    let start = Instant::now();
    let name = match path {
        Some(path) => format!("{} x {}", case.name, path.name()),
        None => case.name.to_owned(),
    };
    let context = Context::new(fixture, format!("e2e-{}-{number}", std::process::id()), path);
    let result = context.prepare().and_then(|()| (case.run)(&context));
    let result = context.forget().and(result.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}")));
    let seconds = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => println!("{name} ... ok ({seconds:.1} s)"),
        Err(error) => {
            println!("{name} ... FAILED ({seconds:.1} s)\n    {error:#}");
            return Err(name);
        }
    }
    Ok(())
}

fn main() -> Result<ExitCode> {
    testpod::run_if_asked();
    let arguments = Arguments::parse();
    let wanted: Vec<_> = arguments.cases.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let chosen = |case: &&Case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part));
    let (cases, left): (Vec<_>, Vec<_>) = table().filter(chosen).partition(|case| !(arguments.short && case.long));
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(ExitCode::SUCCESS);
    }
    let fixture = Fixture::start(&arguments.state)?;
    let paths = paths(&arguments.paths, &fixture)?;
    let (mut passed, mut failed) = (0, Vec::new());
    for path in &paths {
        if let Some(path) = path {
            serving::choose(&fixture, *path)?;
        }
        for case in &cases {
            if case.of_sheave && path.is_none() {
                println!("{} ... left out: Sheave doesn't serve here", case.name);
                continue;
            }
            match run(&fixture, case, passed + failed.len(), *path) {
                Ok(()) => passed += 1,
                Err(name) => failed.push(name),
            }
        }
    }
    if paths != [None] {
        serving::choose(&fixture, DataPath::Auto)?;
    }
    left.iter().for_each(|case| println!("left to `make e2e-cluster`: {}", case.name));
    failed.iter().for_each(|name| println!("failed: {name}"));
    println!("{passed} passed, {} failed", failed.len());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
