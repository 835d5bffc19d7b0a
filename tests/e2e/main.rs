//! `sheave-e2e`: every case of the product's behaviour, on both data paths, on a real API server or a folder of YAML.
//!
//! The data paths run side by side, each in a world of namespaces of its own; each pair of data path and source gets fresh programs on it, and each case
//! a Kubernetes namespace of its own. What a case claims is its name; where it looks is in its file.
#![expect(clippy::print_stdout, reason = "a test program reports on standard output")]

mod bad_input;
mod case;
mod changes;
mod check;
mod cli;
mod context;
mod endpoints;
mod exceptions;
mod faults;
mod leftovers;
mod lifecycle;
mod parallel;
mod restarts;
mod runner;
mod selectorless;
mod services;
mod sockets;
mod trust;
mod udp;
mod vips;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use sheave_harness::cluster::DataPath;
use sheave_harness::{run, testpod};

use crate::case::Case;

/// Which part of the cases to run.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases whose name contains one of these parts (separated by commas).
    #[arg(long, default_value = "")]
    cases: String,
    /// Data paths to run them on.
    #[arg(long, default_value = "ebpf,userspace", overrides_with = "paths")]
    paths: String,
    /// Sources to run them from.
    #[arg(long, default_value = "kube,dir")]
    sources: String,
    /// Name the cases and run none.
    #[arg(long)]
    list: bool,
}

/// Every case of every topic, in the order of the run: what stops programs comes last.
fn table() -> impl Iterator<Item = &'static Case> {
    let topics: [&[Case]; 14] = [
        services::CASES,
        sockets::CASES,
        vips::CASES,
        endpoints::CASES,
        selectorless::CASES,
        changes::CASES,
        udp::CASES,
        exceptions::CASES,
        bad_input::CASES,
        lifecycle::CASES,
        restarts::CASES,
        trust::CASES,
        cli::CASES,
        faults::CASES,
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
    let paths = [DataPath::Ebpf, DataPath::Userspace];
    let paths: Vec<_> = paths.into_iter().filter(|path| arguments.paths.contains(path.name())).collect();
    ensure!(!paths.is_empty(), "--paths {:?}: ebpf, userspace or both", arguments.paths);
    if paths.len() > 1 && !parallel::is_part() {
        return parallel::run(&paths);
    }
    let run = run::enter()?;
    ensure!(!cases.is_empty(), "no case's name contains {:?}; --list names them", arguments.cases);
    let sources: Vec<_> = ["kube", "dir"].into_iter().filter(|source| arguments.sources.contains(source)).collect();
    runner::run(&run, &cases, &paths, &sources)
}
