//! The client: hot loops over blocking sockets, timed from inside.
//!
//! Every connection is closed with RST (SO_LINGER 0), so that none stays in TIME_WAIT and the client never runs out of
//! ports, whatever is between it and the far side.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::agent::{Ask, Said};
use crate::sys;

/// How long any one connection may keep silent before its block has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes per read or write of a stream.
const CHUNK: usize = 256 * 1024;

/// Runs a client agent until its input ends.
pub(crate) fn run(cpu: usize) -> Result<()> {
    sys::die_with_parent()?;
    sys::pin_thread(0, cpu).with_context(|| format!("pin to CPU {cpu}"))?;
    sheave_harness::sys::raise_descriptor_limit()?;
    let mut client = State { open: BTreeMap::new(), held: Vec::new(), buffer: vec![0x5a; CHUNK] };
    crate::agent::answer_all(|ask| client.answer(&ask))
}

/// A client's connections.
struct State {
    open: BTreeMap<u32, TcpStream>,
    held: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl State {
    fn answer(&mut self, ask: &Ask) -> Result<Said> {
        match *ask {
            Ask::Connects { to, count } => timed(|| (0..count).try_for_each(|_| touch(to))),
            Ask::Open { slot, to } => timed(|| {
                self.open.remove(&slot);
                self.open.insert(slot, connect(to)?);
                Ok(())
            }),
            Ask::RoundTrips { slot, count } => {
                let stream = self.slot(slot)?;
                timed(|| (0..count).try_for_each(|_| exchange(stream)))
            }
            Ask::Upload { slot, bytes } => self.upload(slot, bytes),
            Ask::Download { slot, bytes } => self.download(slot, bytes),
            Ask::Hold { to, count } => Ok(self.hold(to, count)),
            Ask::CheckHeld => Ok(self.check_held()),
            Ask::Release => timed(|| {
                self.open.clear();
                self.held.clear();
                Ok(())
            }),
            Ask::Follow { to, served, gap_us, timeout_ms } => {
                follow(to, served, Duration::from_micros(gap_us), Duration::from_millis(timeout_ms))
            }
        }
    }

    fn slot(&mut self, slot: u32) -> Result<&mut TcpStream> {
        self.open.get_mut(&slot).with_context(|| format!("connection {slot} is not open"))
    }

    fn upload(&mut self, slot: u32, bytes: u64) -> Result<Said> {
        let stream = self.open.get_mut(&slot).with_context(|| format!("connection {slot} is not open"))?;
        timed(|| {
            stream.write_all(&crate::server::order(b'U', bytes))?;
            let mut left = bytes;
            while left > 0 {
                let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                stream.write_all(&self.buffer[..n])?;
                left -= n as u64;
            }
            stream.read_exact(&mut [0])?;
            Ok(())
        })
    }

    fn download(&mut self, slot: u32, bytes: u64) -> Result<Said> {
        let stream = self.open.get_mut(&slot).with_context(|| format!("connection {slot} is not open"))?;
        timed(|| {
            stream.write_all(&crate::server::order(b'D', bytes))?;
            let mut left = bytes;
            while left > 0 {
                let n = stream.read(&mut self.buffer)?;
                ensure!(n > 0, "the far side closed {left} bytes early");
                left = left.checked_sub(n as u64).context("more bytes than were asked for")?;
            }
            Ok(())
        })
    }

    /// Opens more connections to keep; how many are held, and the first error among the new ones.
    fn hold(&mut self, to: SocketAddr, count: u32) -> Said {
        let mut first_error = None;
        for _ in 0..count {
            match connect(to).and_then(|mut stream| exchange(&mut stream).map(|()| stream)) {
                Ok(stream) => self.held.push(stream),
                Err(error) => {
                    first_error = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        Said::Held { working: u32::try_from(self.held.len()).unwrap_or(u32::MAX), first_error }
    }

    fn check_held(&mut self) -> Said {
        let mut first_error = None;
        let mut working = 0;
        for stream in &mut self.held {
            match exchange(stream) {
                Ok(()) => working += 1,
                Err(error) => first_error = first_error.or(Some(format!("{error:#}"))),
            }
        }
        Said::Held { working, first_error }
    }
}

/// Times a block.
fn timed(block: impl FnOnce() -> Result<()>) -> Result<Said> {
    let start = Instant::now();
    block()?;
    Ok(Said::Took { ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX) })
}

/// An open connection that will be closed with RST.
fn connect(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect(&to.into()).with_context(|| format!("connect to {to}"))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// One byte there and back.
fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x").context("write")?;
    stream.read_exact(&mut [0]).context("read")
}

/// Connect, one byte there and back, close: with as few system calls of its own as can be, because they are in what is
/// compared and would thin the difference out.
fn touch(to: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect(&to.into()).with_context(|| format!("connect to {to}"))?;
    exchange(&mut socket.into())
}

/// Tries connections until one has the wanted result.
fn follow(to: SocketAddr, served: bool, gap: Duration, timeout: Duration) -> Result<Said> {
    let start = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        if is_served(to)? == served {
            let at = sheave_harness::sys::monotonic().as_nanos();
            return Ok(Said::Followed { at_ns: u64::try_from(at).unwrap_or(u64::MAX), tries });
        }
        if start.elapsed() > timeout {
            bail!("{to} is {} served after {timeout:?}, {tries} tries", if served { "not" } else { "still" });
        }
        std::thread::sleep(gap);
    }
}

/// Whether a new connection gets its byte back. Silence is an error: a change makes connections refused, never lost.
fn is_served(to: SocketAddr) -> Result<bool> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if socket.connect_timeout(&to.into(), PATIENCE).is_err() {
        return Ok(false);
    }
    match exchange(&mut socket.into()) {
        Ok(()) => Ok(true),
        Err(error) if timed_out(&error) => Err(error),
        Err(_) => Ok(false),
    }
}

/// Whether an error is that nothing came for [`PATIENCE`].
fn timed_out(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn client() -> State {
        State { open: BTreeMap::new(), held: Vec::new(), buffer: vec![0; CHUNK] }
    }

    #[test]
    fn blocks_against_the_real_far_side() {
        let [serial, echo, stream] = crate::server::start("127.0.0.1".parse().unwrap(), 0).unwrap();
        let mut c = client();
        let took = |said| matches!(said, Said::Took { ns } if ns > 0);
        assert!(took(c.answer(&Ask::Connects { to: serial, count: 20 }).unwrap()));
        assert!(took(c.answer(&Ask::Connects { to: echo, count: 20 }).unwrap()));
        c.answer(&Ask::Open { slot: 1, to: echo }).unwrap();
        assert!(took(c.answer(&Ask::RoundTrips { slot: 1, count: 20 }).unwrap()));
        assert!(c.answer(&Ask::RoundTrips { slot: 9, count: 1 }).is_err());
        c.answer(&Ask::Open { slot: 2, to: stream }).unwrap();
        for bytes in [1, 1_000_000] {
            assert!(took(c.answer(&Ask::Upload { slot: 2, bytes }).unwrap()));
            assert!(took(c.answer(&Ask::Download { slot: 2, bytes }).unwrap()));
        }
        assert_eq!(
            c.answer(&Ask::Hold { to: echo, count: 30 }).unwrap(),
            Said::Held { working: 30, first_error: None }
        );
        assert_eq!(c.answer(&Ask::CheckHeld).unwrap(), Said::Held { working: 30, first_error: None });
        c.answer(&Ask::Release).unwrap();
        assert_eq!(c.answer(&Ask::CheckHeld).unwrap(), Said::Held { working: 0, first_error: None });
    }

    #[test]
    fn following_waits_for_the_wanted_result() {
        let [_, echo, _] = crate::server::start("127.0.0.1".parse().unwrap(), 0).unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut c = client();
        let mut follow = |to, served| c.answer(&Ask::Follow { to, served, gap_us: 100, timeout_ms: 50 });
        assert!(matches!(follow(echo, true).unwrap(), Said::Followed { tries: 1, at_ns } if at_ns > 0));
        assert!(matches!(follow(gone, false).unwrap(), Said::Followed { tries: 1, .. }));
        assert!(follow(gone, true).is_err());
        assert!(follow(echo, false).is_err());
    }
}
