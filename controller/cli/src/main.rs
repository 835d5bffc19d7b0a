//! `sheave`: shows what controllers and proxies do, and finds what is in their way. It changes nothing.
//!
//! `access` finds whom to ask and proves who asks, `ask` puts what they say together, `status` and `services` judge and show
//! that, `check` looks at a machine or a cluster itself. What is wrong is a finding with a remedy (`finding`), everywhere.
//!
//! Exit codes: 0 nothing is wrong, 1 something is, 2 wrong flags, 3 nobody could be asked.

mod access;
mod args;
mod ask;
mod check;
mod finding;
mod services;
mod status;
mod sys;
mod table;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, Output};
use crate::finding::Finding;

/// Wrong flags.
const USAGE: u8 = 2;
/// Nobody answered.
const UNASKED: u8 = 3;

/// A mistake in the flags that clap can't find. Exit code 2.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What a command has to say.
struct Report {
    /// For eyes.
    text: String,
    /// The same for programs.
    json: serde_json::Value,
    /// What is wrong, worst first.
    findings: Vec<Finding>,
}

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
    // Fails only if a provider is installed already, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("no runtime can be started: {error}"), UNASKED),
    };
    let report = runtime.block_on(run(&args));
    // Connections that are still open are of no use to anybody.
    runtime.shutdown_background();
    match report {
        Ok(report) => show(&report, args.common.output),
        Err(error) if error.is::<Usage>() => complain(&format!("{error:#}"), USAGE),
        Err(error) => complain(&format!("{error:#}"), UNASKED),
    }
}

async fn run(args: &Args) -> anyhow::Result<Report> {
    match &args.command {
        Command::Status => status::run(&args.common).await,
        Command::Services(wanted) => services::run(&args.common, wanted).await,
        Command::Check(wanted) => check::run(&args.common, wanted).await,
    }
}

fn show(report: &Report, output: Output) -> ExitCode {
    let page = match output {
        Output::Json => {
            let mut page = report.json.clone();
            page["findings"] = serde_json::json!(report.findings);
            format!("{page:#}\n")
        }
        Output::Table | Output::Wide => {
            let findings = finding::lines(&report.findings);
            let gap = if report.text.is_empty() || findings.is_empty() { "" } else { "\n" };
            format!("{}{gap}{findings}", report.text)
        }
    };
    // Whoever reads may have had enough, as `head` has; the exit code stands.
    let _ = std::io::stdout().write_all(page.as_bytes());
    if finding::any_error(&report.findings) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[expect(clippy::print_stderr, reason = "the one line that says why there is no answer")]
fn complain(line: &str, code: u8) -> ExitCode {
    eprintln!("sheave: {}", line.replace('\n', " "));
    ExitCode::from(code)
}
