//! The program inside every test pod: servers that note who asked, and clients that say exactly what came back.
//!
//! It is the harness' own program, started again with [`ARGUMENT`]. Commands come over a unix socket, one JSON line each
//! way ([`protocol`]); [`crate::agent::Agent`] is the other end.

pub mod admission;
mod client;
mod control;
mod follow;
mod held;
mod hold;
mod load;
pub mod protocol;
mod server;
mod udp;

use std::path::Path;

use anyhow::{Context, Result};

/// First argument that makes a program of the harness a test pod.
pub const ARGUMENT: &str = "sheave-testpod";

/// Where this program was started as a test pod: is one, and never returns. A `main` that reads its own arguments before
/// [`crate::run::enter`] calls this first.
pub fn run_if_asked() {
    if std::env::args_os().nth(1).is_some_and(|first| first == ARGUMENT) {
        std::process::exit(main());
    }
}

/// Runs until killed. Arguments after [`ARGUMENT`]: the control socket, this pod's name, then its servers (`tcp:8080`).
/// The result is an exit code.
fn main() -> i32 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a program started by the harness, which keeps what it says")]
            {
                eprintln!("test pod: {error:#}");
            }
            1
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [socket, name, servers @ ..] = arguments.as_slice() else { anyhow::bail!("SOCKET NAME [SERVER...]") };
    let records = server::Servers::new(name);
    for server in servers {
        let (kind, port) = server.split_once(':').context("a server is KIND:PORT")?;
        records.listen(kind.parse()?, port.parse().context("port")?)?;
    }
    control::serve(Path::new(socket), &records)
}
