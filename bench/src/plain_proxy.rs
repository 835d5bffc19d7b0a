//! The smallest TCP proxy there is, for comparison: one thread, blocking calls, one connection at a time, a transparent
//! listener behind the product's own rules and a transparent upstream socket. It chooses nothing, counts nothing, and
//! carries the small exchanges of the connection rows only.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use crate::sys;

/// A connection that says nothing for so long is given up, so that it can't keep the others out for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Proxies whatever reaches `listen` to `backend`, until the parent ends.
pub(crate) fn run(listen: SocketAddr, backend: SocketAddr, mark: u32, cpu: usize) -> Result<()> {
    sys::die_with_parent()?;
    sys::pin_thread(0, cpu).with_context(|| format!("pin to CPU {cpu}"))?;
    let listener = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener.set_ip_transparent_v4(true).context("IP_TRANSPARENT")?;
    listener.bind(&listen.into()).with_context(|| format!("bind {listen}"))?;
    listener.listen(1024)?;
    crate::agent::say_ready()?;
    loop {
        let (down, client) = listener.accept().context("accept")?;
        // A connection that breaks concerns its client only, who sees it.
        let _ = carry(down, client.as_socket(), backend, mark);
    }
}

/// Carries one connection: a request and its answer at a time, until either side closes.
fn carry(down: Socket, client: Option<SocketAddr>, backend: SocketAddr, mark: u32) -> Result<()> {
    down.set_read_timeout(Some(PATIENCE))?;
    let mut down = TcpStream::from(down);
    let mut up = upstream(client.context("the client's address")?, backend, mark)?;
    let mut buffer = [0; 4096];
    loop {
        let n = match down.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return reset(up),
            Err(e) => return Err(e.into()),
        };
        up.write_all(&buffer[..n])?;
        let n = up.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        down.write_all(&buffer[..n])?;
    }
}

/// A connection to the backend from the client's own address and port.
fn upstream(client: SocketAddr, backend: SocketAddr, mark: u32) -> Result<TcpStream> {
    let up = Socket::new(Domain::for_address(backend), Type::STREAM, None)?;
    up.set_ip_transparent_v4(true)?;
    up.set_mark(mark)?;
    up.set_reuse_address(true)?;
    up.set_read_timeout(Some(PATIENCE))?;
    up.bind(&client.into())?;
    up.connect(&backend.into())?;
    Ok(up.into())
}

/// Passes a client's RST on, so that the upstream side leaves nothing in TIME_WAIT.
fn reset(up: TcpStream) -> Result<()> {
    Socket::from(up).set_linger(Some(Duration::ZERO))?;
    Ok(())
}
