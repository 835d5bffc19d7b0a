//! `sheave-controller`: watches Services and Pods, computes what proxies need, and serves it to them.
//!
//! `source` brings objects as facts, `engine` owns the index and encodes what has changed, `publish` keeps the catalog that
//! all subscribers share, `serve` streams it, `leader` elects who may write, `trust` keeps a CA and knows nodes by their tokens,
//! `admin` shows state. `init` makes certificates where there are no tokens.
//! Nothing here decides what a Service means: that is the index and the model.

mod admin;
mod args;
mod config;
mod engine;
mod init;
mod leader;
mod logging;
mod metrics;
mod pki;
mod publish;
mod run;
mod serve;
mod source;
mod supervise;
mod trust;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::config::{Config, ConfigError};

/// Wrong flags, or a configuration that can't work.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => return complain(&args::one_line(&error), USAGE),
        Err(help) => {
            // Help and version are output that was asked for; nothing is left to do if it can't be written.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let result = match args.command {
        Command::Run(args) => Config::new(args).map_err(anyhow::Error::from).and_then(run::run),
        Command::Init(args) => init::init(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() => complain(&format!("{error:#}"), USAGE),
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

#[expect(clippy::print_stderr, reason = "the one line that says why the program ends, before or after there is a log")]
fn complain(line: &str, code: u8) -> ExitCode {
    eprintln!("sheave-controller: {}", line.replace('\n', " "));
    ExitCode::from(code)
}
