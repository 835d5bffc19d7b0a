//! Processes of this program that run inside the test network, and the words they exchange with the one that measures.
//!
//! A client agent lives in a pod, pinned to one CPU; it gets an [`Ask`] per line on its input and answers each with one
//! [`Said`]. It does a whole block of operations per question, so that the pipe's own time is outside what is timed.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sheave_harness::process::{self, Place};

/// What a client is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// `count` times: connect, one byte there and back, close with RST.
    Connects { to: SocketAddr, count: u32 },
    /// Opens a connection that stays, under a number, in place of an earlier one with that number.
    Open { slot: u32, to: SocketAddr },
    /// `count` times one byte there and back on an open connection.
    RoundTrips { slot: u32, count: u32 },
    /// Sends so many bytes on an open connection to the stream port, until the far side says it has them all.
    Upload { slot: u32, bytes: u64 },
    /// Receives so many bytes on an open connection to the stream port.
    Download { slot: u32, bytes: u64 },
    /// Opens `count` more connections, passes one byte over each, and keeps them.
    Hold { to: SocketAddr, count: u32 },
    /// Passes one more byte over each connection that is held.
    CheckHeld,
    /// Closes everything that is open.
    Release,
    /// Tries connections, `gap_us` apart, until one is served (or is not, as wanted).
    Follow { to: SocketAddr, served: bool, gap_us: u64, timeout_ms: u64 },
}

/// A client's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Said {
    /// Done, and how long the whole block took.
    Took { ns: u64 },
    /// How many connections are held and work.
    Held { working: u32, first_error: Option<String> },
    /// When the first connection with the wanted result ended (CLOCK_MONOTONIC), and how many were tried.
    Followed { at_ns: u64, tries: u32 },
    /// What went wrong.
    Failed { error: String },
}

/// Starts this program again with these arguments at a place; it ends with its input.
fn spawn(place: &Place, arguments: &[String]) -> Result<(Child, ChildStdin, BufReader<ChildStdout>)> {
    let mut command = Command::new(std::env::current_exe().context("path of this program")?);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = process::spawn(&mut command, place).with_context(|| format!("start {}", arguments.join(" ")))?;
    let input = child.stdin.take().context("the child's input was asked for")?;
    let output = child.stdout.take().context("the child's output was asked for")?;
    Ok((child, input, BufReader::new(output)))
}

/// Ends a child and waits for it.
fn end(child: &mut Child) {
    // Both fail only when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

/// A client agent, as seen by the process that measures; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Client {
    child: Child,
    /// Borrowed for one question or answer at a time; several arms of a comparison share one client.
    pipe: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Client {
    /// Starts one at a place, pinned to a CPU.
    pub(crate) fn start(place: &Place, cpu: usize) -> Result<Self> {
        let (child, input, output) = spawn(place, &["client".into(), "--cpu".into(), cpu.to_string()])?;
        Ok(Self { child, pipe: RefCell::new((input, output)) })
    }

    /// Sends the question and goes on without its answer, which [`Client::answer`] takes.
    pub(crate) fn begin(&self, ask: &Ask) -> Result<()> {
        let mut line = serde_json::to_string(ask)?;
        line.push('\n');
        self.pipe.borrow_mut().0.write_all(line.as_bytes()).context("the client agent has ended")
    }

    /// The answer to the oldest question without one.
    pub(crate) fn answer(&self) -> Result<Said> {
        let mut line = String::new();
        self.pipe.borrow_mut().1.read_line(&mut line).context("the client agent's answer")?;
        if line.is_empty() {
            bail!("the client agent has ended");
        }
        match serde_json::from_str(&line).with_context(|| format!("answer {line:?}"))? {
            Said::Failed { error } => bail!("{error}"),
            said => Ok(said),
        }
    }

    /// One question, one answer.
    pub(crate) fn ask(&self, ask: &Ask) -> Result<Said> {
        self.begin(ask)?;
        self.answer().with_context(|| format!("{ask:?}"))
    }

    /// A block of operations: nanoseconds per operation.
    pub(crate) fn block(&self, ask: &Ask, operations: u32) -> Result<f64> {
        match self.ask(ask)? {
            Said::Took { ns } => Ok(ns as f64 / f64::from(operations)),
            other => bail!("{ask:?}: unexpected answer {other:?}"),
        }
    }

    /// A block of new connections: nanoseconds each.
    pub(crate) fn connects(&self, to: SocketAddr, count: u32) -> Result<f64> {
        self.block(&Ask::Connects { to, count }, count)
    }

    /// A question about held connections: how many work.
    pub(crate) fn held(&self, ask: &Ask) -> Result<u32> {
        match self.ask(ask)? {
            Said::Held { working, .. } => Ok(working),
            other => bail!("{ask:?}: unexpected answer {other:?}"),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A process of ours that only serves, until it is dropped: the far side or the plain proxy.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    _input: ChildStdin,
}

impl Server {
    /// Starts one at a place and waits until it listens.
    pub(crate) fn start(place: &Place, arguments: &[String]) -> Result<Self> {
        let (mut child, input, mut output) = spawn(place, arguments)?;
        let mut line = String::new();
        output.read_line(&mut line).context("a server agent's first line")?;
        if line.trim() != READY {
            end(&mut child);
            bail!("{} did not start to listen: {line:?}", arguments.join(" "));
        }
        Ok(Self { child, _input: input })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// What a server prints once it listens.
const READY: &str = "ready";

/// Says that this process listens.
pub(crate) fn say_ready() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    Ok(())
}

/// Answers questions from the input until it ends.
pub(crate) fn answer_all(mut answer: impl FnMut(Ask) -> Result<Said>) -> Result<()> {
    let mut out = BufWriter::new(std::io::stdout());
    for line in std::io::stdin().lock().lines() {
        let ask = serde_json::from_str(&line?).context("a question that this program doesn't know")?;
        let said = answer(ask).unwrap_or_else(|error| Said::Failed { error: format!("{error:#}") });
        serde_json::to_writer(&mut out, &said)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}
