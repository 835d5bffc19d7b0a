//! sheave-proxy: forwards the Services of a cluster on one node.
//!
//! `run` serves until SIGTERM and leaves what is in the kernel there; `clean` removes it. A flag or a machine that can't
//! work ends the program with 2 and one line on stderr.

mod admin;
mod args;
mod cgroup;
mod clean;
mod config;
mod datapath;
mod discovery;
mod disk;
mod health;
mod l7;
mod lock;
mod logging;
mod metrics;
mod run;
mod status;
mod store;
mod supervise;
mod sys;
mod userspace;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use config::{Config, NodeConfig};

fn main() -> ExitCode {
    sys::frugal_allocator();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) if !help.use_stderr() => {
            // Where even this can't be written there is nobody to tell.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return refused(&args::one_line(&error)),
    };
    let ended = match cli.command {
        Command::Run(args) => match Config::try_from(*args) {
            Ok(config) => serve(config),
            Err(error) => return refused(&error.to_string()),
        },
        Command::Clean(args) => match NodeConfig::try_from(args) {
            Ok(node) => logging::start(node.log_format, &node.log_level).and_then(|_| clean::clean(&node)),
            Err(error) => return refused(&error.to_string()),
        },
    };
    ended.unwrap_or_else(|error| {
        eprintln!("sheave-proxy: {error:#}");
        ExitCode::FAILURE
    })
}

/// One thread for all that isn't forwarding: it sleeps nearly always, and each further one would cost memory.
fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let log_level = logging::start(config.node.log_format, &config.node.log_level)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(run::run(config, log_level));
    // Blocking work that is left is a save that was given up; the file it writes beside the good one is replaced next time.
    runtime.shutdown_background();
    code
}

/// What can't work is said in one line, with 2 for who started the program.
fn refused(line: &str) -> ExitCode {
    eprintln!("sheave-proxy: {}", line.replace('\n', " "));
    ExitCode::from(2)
}
