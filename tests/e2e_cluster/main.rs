//! `sheave-e2e-cluster`: cases on the real cluster of `make cluster-up`, with whatever serves its Services.
//!
//! It runs in the cluster's world (`tests/cluster/in world`), where the API server and the nodes can be reached. Clients are pods on
//! every node, pods on the nodes' own network, and a machine outside; they are this same program, in the image
//! `localhost/testpod:dev`, and are commanded over unix sockets on the nodes' disks, so that no command depends on what is tested.
#![expect(clippy::print_stdout, reason = "a test program reports on standard output")]

mod audit;
mod check;
mod context;
mod dns;
mod fixture;
mod load_balancer;
mod monitoring;
mod pages;
mod rollout;
mod services;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use sheave_harness::testpod;

use crate::context::{Case, Context};

/// Which part of the cases to run.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases whose name contains one of these parts (separated by commas).
    #[arg(long, default_value = "")]
    cases: String,
    /// Name the cases and run none.
    #[arg(long)]
    list: bool,
    /// The running cluster's folder.
    #[arg(long, default_value_os_t = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster"))]
    state: PathBuf,
}

/// Every case of every topic, in the order of the run.
fn table() -> impl Iterator<Item = &'static Case> {
    let topics: [&[Case]; 7] = [
        dns::CASES,
        services::CASES,
        load_balancer::CASES,
        rollout::CASES,
        monitoring::CASES,
        pages::CASES,
        audit::CASES,
    ];
    topics.into_iter().flatten()
}

fn main() -> Result<ExitCode> {
    testpod::run_if_asked();
    let arguments = Arguments::parse();
    let wanted: Vec<_> = arguments.cases.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let chosen = |case: &&Case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part));
    let cases: Vec<_> = table().filter(chosen).collect();
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(ExitCode::SUCCESS);
    }
    let fixture = fixture::Fixture::start(&arguments.state)?;
    let mut failed = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let start = Instant::now();
        let context = Context::new(&fixture, format!("e2e-{}-{number}", std::process::id()));
        let result = context.prepare().and_then(|()| (case.run)(&context));
        let result = context.forget().and(result.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}")));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("{} ... ok ({seconds:.1} s)", case.name),
            Err(error) => {
                println!("{} ... FAILED ({seconds:.1} s)\n    {error:#}", case.name);
                failed.push(case.name);
            }
        }
    }
    failed.iter().for_each(|name| println!("failed: {name}"));
    println!("{} passed, {} failed", cases.len() - failed.len(), failed.len());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
