//! The test's end of a test pod: starts it, and talks to it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::process::{Place, spawn};
use crate::testpod::{ARGUMENT, protocol::*};

/// Longer than any single request takes; a load's last connections may wait out their patience.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A running test pod process; dropped, it is killed where it was started here.
#[derive(Debug)]
pub struct Agent {
    name: String,
    socket: PathBuf,
    /// None: somebody else started it, and ends it.
    child: Mutex<Option<Child>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Ok(serde_json::Value),
    Error(String),
}

impl Agent {
    /// Starts a test pod at a place with these servers, and returns once all of them listen.
    pub fn start(name: &str, place: &Place, servers: &[(Kind, u16)], sockets: &Path) -> Result<Self> {
        Self::spawn(name, Command::new("/proc/self/exe"), servers, sockets, |command| spawn(command, place))
    }

    /// Starts one by a command that goes on as the program it is given (`nsenter ... PROGRAM`), where that command leads.
    pub fn start_by(name: &str, mut command: Command, servers: &[(Kind, u16)], sockets: &Path) -> Result<Self> {
        command.arg(std::env::current_exe()?);
        Self::spawn(name, command, servers, sockets, |command| command.spawn().context("start"))
    }

    /// One that runs already and listens at this socket.
    pub fn attach(name: &str, socket: &Path) -> Self {
        Self { name: name.to_owned(), socket: socket.to_owned(), child: Mutex::new(None) }
    }

    fn spawn(
        name: &str,
        mut command: Command,
        servers: &[(Kind, u16)],
        sockets: &Path,
        start: impl FnOnce(&mut Command) -> Result<Child>,
    ) -> Result<Self> {
        let socket = sockets.join(name);
        command.arg(ARGUMENT).arg(&socket).arg(name);
        command.args(servers.iter().map(|(kind, port)| format!("{}:{port}", kind.name())));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = start(&mut command)?;
        let mut line = String::new();
        let output = child.stdout.take().context("output of a test pod")?;
        BufReader::new(output).read_line(&mut line)?;
        if line != "ready\n" {
            bail!("test pod {name} did not start");
        }
        Ok(Self { name: name.to_owned(), socket, child: Mutex::new(Some(child)) })
    }

    /// The name its servers answer with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills it with SIGKILL: its kernel resets the connections. Nothing happens to one that was started elsewhere.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = child.as_mut() else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        let _ = fs::remove_file(&self.socket); // killed before, perhaps
        Ok(())
    }

    fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let call = || -> Result<T> {
            let stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            let mut line = serde_json::to_string(request)?;
            line.push('\n');
            (&mut &stream).write_all(line.as_bytes())?;
            let mut reply = String::new();
            BufReader::new(&stream).read_line(&mut reply)?;
            match serde_json::from_str(&reply)? {
                Reply::Ok(value) => Ok(serde_json::from_value(value)?),
                Reply::Error(error) => bail!(error),
            }
        };
        call().with_context(|| format!("test pod {}", self.name))
    }

    /// Opens one more server.
    pub fn listen(&self, kind: Kind, port: u16) -> Result<()> {
        self.call(&Request::Listen { kind, port })
    }

    /// Opens an admission webhook with this certificate and key (PEM).
    pub fn admit(&self, port: u16, certificate: &str, key: &str) -> Result<()> {
        self.call(&Request::Admit { port, certificate: certificate.to_owned(), key: key.to_owned() })
    }

    /// What its servers have noted.
    pub fn records(&self) -> Result<Vec<Record>> {
        self.call(&Request::Records)
    }

    /// Forgets what its servers have noted.
    pub fn clear_records(&self) -> Result<()> {
        self.call(&Request::ClearRecords)
    }

    /// Asks once.
    pub fn ask(&self, ask: &Ask) -> Result<Answer> {
        self.call(&Request::Ask(ask.clone()))
    }

    /// Addresses of a name, by its own resolver.
    pub fn resolve(&self, name: &str) -> Result<Vec<IpAddr>> {
        self.call(&Request::Resolve { name: name.to_owned() })
    }

    /// Asks a TCP server in the ordinary way.
    pub fn tcp(&self, target: SocketAddr) -> Result<Answer> {
        self.ask(&Ask::new(Kind::Tcp, target))
    }

    /// Asks an HTTP server.
    pub fn http(&self, target: SocketAddr) -> Result<Answer> {
        self.ask(&Ask::new(Kind::Http, target))
    }

    /// Asks a UDP server from an unconnected socket.
    pub fn udp(&self, target: SocketAddr) -> Result<Answer> {
        self.ask(&Ask { how: How::Unconnected, say: "ping".into(), ..Ask::new(Kind::Udp, target) })
    }

    /// Asks, and keeps the connection.
    pub fn open(&self, ask: &Ask) -> Result<Opened> {
        self.call(&Request::Open(ask.clone()))
    }

    /// One more round trip on a kept connection.
    pub fn ping(&self, id: u64) -> Result<Answer> {
        self.call(&Request::Ping { id, target: None })
    }

    /// One datagram from a kept, unconnected socket to a target of its own.
    pub fn ping_to(&self, id: u64, target: SocketAddr) -> Result<Answer> {
        self.call(&Request::Ping { id, target: Some(target) })
    }

    /// Half-closes a kept connection and returns what the server still says.
    pub fn finish(&self, id: u64) -> Result<String> {
        self.call(&Request::Finish { id })
    }

    /// Closes a kept connection.
    pub fn close(&self, id: u64) -> Result<()> {
        self.call(&Request::Close { id })
    }

    /// Starts round trips on a kept connection, `every` apart.
    pub fn beat(&self, id: u64, every: Duration) -> Result<()> {
        self.call(&Request::Beat { id, every: u64::try_from(every.as_millis())? })
    }

    /// Ends them.
    pub fn beat_stop(&self, id: u64) -> Result<Beats> {
        self.call(&Request::BeatStop { id })
    }

    /// Opens many connections at once and keeps them; their number.
    pub fn hold_start(&self, hold: Hold) -> Result<u64> {
        self.call(&Request::HoldStart(hold))
    }

    /// Closes them.
    pub fn hold_stop(&self, id: u64) -> Result<HoldReport> {
        self.call(&Request::HoldStop { id })
    }

    /// Waits until a change shows in new connections.
    pub fn follow(&self, change: Follow) -> Result<Followed> {
        self.call(&Request::Follow(change))
    }

    /// Starts a load and returns its number.
    pub fn load_start(&self, ask: Ask, rate: u32) -> Result<u64> {
        self.call(&Request::LoadStart(Load { ask, rate }))
    }

    /// What a load has met so far.
    pub fn load_report(&self, id: u64) -> Result<LoadReport> {
        self.call(&Request::LoadReport { id })
    }

    /// Ends a load.
    pub fn load_stop(&self, id: u64) -> Result<LoadReport> {
        self.call(&Request::LoadStop { id })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.kill(); // it may have ended already
    }
}
