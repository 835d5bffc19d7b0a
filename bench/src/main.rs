//! `sheave-bench`: the limits that Sheave holds itself to, measured in network namespaces on this machine.
//!
//! `quick` builds its own clusters by the test harness, measures every row interleaved with what it is compared with,
//! prints a table and writes JSON; `cluster` does so on real ones (`tests/cluster`). The other subcommands are the processes that it starts in those namespaces: clients, the
//! far side and the plain proxy. It knows nothing of how the product works inside.

mod agent;
mod client;
mod cluster;
mod haproxy;
mod manifests;
mod plain_proxy;
mod report;
mod rounds;
mod rows;
mod server;
mod stack;
mod stats;
mod sys;
mod usage;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures Sheave against its limits.
#[derive(Debug, Parser)]
#[command(name = "sheave-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every limit as a row, in under ten minutes; fails if one does not hold.
    Quick {
        /// Where the result goes.
        #[arg(long, value_name = "FILE")]
        json: PathBuf,
        /// Only rows whose name contains this.
        #[arg(long, value_name = "PATTERN", default_value = "")]
        rows: String,
    },
    /// What only a real cluster shows, with kube-proxy beside us, in under half an hour; fails if a limit does not hold.
    Cluster {
        /// Where the result goes.
        #[arg(long, value_name = "FILE")]
        json: PathBuf,
        /// Only rows whose name contains this.
        #[arg(long, value_name = "PATTERN", default_value = "")]
        rows: String,
    },
    /// Started by `cluster` in a cluster's world: one round.
    #[command(hide = true)]
    ClusterRound(cluster::Arguments),
    /// Started by `quick` in a pod: the client.
    #[command(hide = true)]
    Client {
        #[arg(long)]
        cpu: usize,
    },
    /// Started by `quick` in a pod: the far side.
    #[command(hide = true)]
    FarSide {
        #[arg(long)]
        listen: IpAddr,
        #[arg(long)]
        cpu: usize,
    },
    /// Started by `quick` on a node: the smallest proxy.
    #[command(hide = true)]
    PlainProxy {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        backend: SocketAddr,
        #[arg(long)]
        mark: u32,
        #[arg(long)]
        cpu: usize,
    },
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == sheave_harness::testpod::ARGUMENT) {
        // A pod of the harness: it ends in there.
        return sheave_harness::run::enter().map_or_else(|error| failed(&error), |_| ExitCode::SUCCESS);
    }
    match Cli::try_parse() {
        Ok(cli) => run(cli.command).unwrap_or_else(|error| failed(&error)),
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            say(text.lines().next().unwrap_or("wrong arguments").trim_start_matches("error: "));
            ExitCode::from(2)
        }
        Err(help) => help.exit(),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    say(&format!("{error:#}"));
    ExitCode::FAILURE
}

#[expect(clippy::print_stderr, reason = "a program's last word to whoever ran it")]
fn say(what: &str) {
    eprintln!("sheave-bench: {what}");
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Quick { json, rows } => {
            let run = sheave_harness::run::enter()?;
            rows::quick(&run, &json, &rows)
        }
        Command::Cluster { json, rows } => cluster::run(&json, &rows),
        Command::ClusterRound(arguments) => cluster::measure(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Client { cpu } => client::run(cpu).map(|()| ExitCode::SUCCESS),
        Command::FarSide { listen, cpu } => server::run(listen, cpu).map(|()| ExitCode::SUCCESS),
        Command::PlainProxy { listen, backend, mark, cpu } => {
            plain_proxy::run(listen, backend, mark, cpu).map(|()| ExitCode::SUCCESS)
        }
    }
}
