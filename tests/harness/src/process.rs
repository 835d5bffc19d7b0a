//! Programs under test: started in a namespace and cgroup, with a log file, ended by signal.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::sys;
use crate::wait::until;

/// Where a process lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace.
    pub netns: Netns,
    /// Its cgroup's folder.
    pub cgroup: PathBuf,
}

/// A started program; dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` at `place`, with its output appended to `LOGS/NAME.log`.
    pub fn start(name: &str, mut command: Command, place: &Place, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file =
            File::options().create(true).append(true).open(&log).with_context(|| format!("{}", log.display()))?;
        command.stdin(Stdio::null()).stderr(file.try_clone()?).stdout(file);
        let child = spawn(&mut command, place).with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id, as seen in this run.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// Fails where the program has ended, with the end of its log.
    pub fn still_runs(&mut self) -> Result<()> {
        let Some(status) = self.ended()? else { return Ok(()) };
        bail!("{} ended ({status}); its log ends:\n{}", self.name, tail(&self.log(), 15))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::kill(self.child.id(), signal).with_context(|| format!("signal {signal} to {}", self.name))
    }

    /// SIGTERM, and its exit status; an error when it hasn't ended after `deadline`.
    pub fn stop(mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        let what = format!("{} ends after SIGTERM", self.name);
        until(&what, deadline, || self.ended()?.context("still running"))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) -> Result<()> {
        self.end().with_context(|| format!("kill {}", self.name))
    }

    fn end(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.end(); // it may have ended already
    }
}

/// Starts a command at a place; its standard streams are the caller's.
pub fn spawn(command: &mut Command, place: &Place) -> Result<Child> {
    let procs = place.cgroup.join("cgroup.procs");
    let procs = File::options().write(true).open(&procs).with_context(|| format!("{}", procs.display()))?;
    sys::place(command, OwnedFd::from(place.netns.descriptor()?), OwnedFd::from(procs));
    command.spawn().with_context(|| format!("{}", command.get_program().to_string_lossy()))
}

/// A program of this workspace: in `SHEAVE_BIN_DIR`, or beside the running one.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("this program's path")?;
    let beside = own.parent().context("this program's folder")?;
    // Cargo puts test programs one folder below.
    let folders = [
        env::var_os("SHEAVE_BIN_DIR").map(PathBuf::from),
        Some(beside.to_owned()),
        beside.parent().map(Path::to_owned),
    ];
    let found = folders.into_iter().flatten().map(|folder| folder.join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not built; run: cargo build -p {name}"))
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
