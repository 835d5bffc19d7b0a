//! The control socket: a thread per controlling connection, one JSON line in, one out.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::held::Held;
use super::hold::Holds;
use super::load::Loads;
use super::protocol::Request;
use super::server::Servers;
use super::{admission, client, follow, udp};

struct Control {
    servers: Servers,
    held: Held,
    holds: Holds,
    loads: Loads,
}

/// Serves for ever. Says `ready` on standard output once it listens.
pub(super) fn serve(socket: &Path, servers: &Servers) -> Result<()> {
    let _ = fs::remove_file(socket); // of an earlier life of the same container
    let listener = UnixListener::bind(socket).with_context(|| format!("{}", socket.display()))?;
    let (held, holds, loads) = (Held::default(), Holds::default(), Loads::default());
    let control = Arc::new(Control { servers: servers.clone(), held, holds, loads });
    std::io::stdout().write_all(b"ready\n")?;
    std::io::stdout().flush()?;
    for stream in listener.incoming() {
        let (control, stream) = (Arc::clone(&control), stream?);
        std::thread::spawn(move || converse(&control, &stream));
    }
    Ok(())
}

fn converse(control: &Control, stream: &UnixStream) -> Result<()> {
    for line in BufReader::new(stream).lines() {
        let answer = match serde_json::from_str::<Request>(&line?).context("request").and_then(|it| control.answer(it))
        {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        let mut stream = stream;
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}

fn value(answer: impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).context("answer")
}

/// Each address once; the resolver names it once for each kind of socket.
fn resolve(name: &str) -> Result<Vec<IpAddr>> {
    let mut addresses: Vec<_> =
        (name, 0).to_socket_addrs().context(name.to_owned())?.map(|it: SocketAddr| it.ip()).collect();
    addresses.dedup();
    Ok(addresses)
}

impl Control {
    fn answer(&self, request: Request) -> Result<Value> {
        match request {
            Request::Listen { kind, port } => self.servers.listen(kind, port).and_then(value),
            Request::Admit { port, certificate, key } => {
                admission::listen(self.servers.name(), port, &certificate, &key).and_then(value)
            }
            Request::Records => value(self.servers.records()),
            Request::ClearRecords => {
                self.servers.clear();
                value(())
            }
            Request::Ask(ask) => value(if udp::is_udp(&ask) { udp::ask(&ask) } else { client::ask(&ask) }),
            Request::Resolve { name } => value(resolve(&name)?),
            Request::Open(ask) => value(self.held.open(&ask)?),
            Request::Ping { id, target } => value(self.held.ping(id, target)?),
            Request::Finish { id } => value(self.held.finish(id)?),
            Request::Close { id } => {
                self.held.close(id);
                value(())
            }
            Request::Beat { id, every } => value(self.held.beat(id, every)?),
            Request::BeatStop { id } => value(self.held.beat_stop(id)?),
            Request::HoldStart(hold) => value(self.holds.start(&hold)?),
            Request::HoldStop { id } => value(self.holds.stop(id)?),
            Request::Follow(change) => value(follow::follow(&change)?),
            Request::LoadStart(load) => value(self.loads.start(&load)?),
            Request::LoadReport { id } => value(self.loads.report(id)?),
            Request::LoadStop { id } => value(self.loads.stop(id)?),
        }
    }
}
