//! Health checks, as a cloud makes them: a GET of /healthz.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A node on the same bridge answers within a millisecond.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether a node answers 200.
pub(crate) fn answers(at: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET /healthz HTTP/1.0\r\nhost: {at}\r\n\r\n").as_bytes())?;
        let mut head = [0; 12]; // "HTTP/1.0 200"
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}
