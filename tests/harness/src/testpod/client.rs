//! TCP and HTTP clients: every way to open a connection, and every way it can go wrong told apart.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::protocol::{Answer, Ask, How, Kind, Outcome};
use super::server::plain;

/// An answer with nothing in it yet.
pub(super) fn blank(outcome: Outcome) -> Answer {
    Answer { outcome, server: None, client: None, local: None, peer: None, millis: 0.0 }
}

/// Which outcome an error is.
pub(super) fn outcome(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Outcome::Reset,
        ErrorKind::UnexpectedEof => Outcome::Closed,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Dropped,
        // A blocking connect whose SO_SNDTIMEO ran out.
        _ if error.raw_os_error() == Some(libc::EINPROGRESS) => Outcome::Dropped,
        _ => Outcome::Failed(error.to_string()),
    }
}

/// Asks once, and closes with RST so that thousands of questions leave no port in TIME_WAIT.
pub(super) fn ask(ask: &Ask) -> Answer {
    let start = Instant::now();
    let mut answer = match open(ask) {
        Ok((stream, mut answer)) => {
            if let Err(error) = converse(&stream, ask, &mut answer) {
                answer.outcome = outcome(&error);
            }
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            answer
        }
        Err(error) => blank(outcome(&error)),
    };
    answer.millis = start.elapsed().as_secs_f64() * 1000.0;
    answer
}

/// The target as a socket of this question sees it.
pub(super) fn target(ask: &Ask) -> SocketAddr {
    widened(ask.target, ask.mapped)
}

/// An address as an IPv6 socket writes it, where that is asked for.
pub(super) fn widened(address: SocketAddr, mapped: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        _ => address,
    }
}

/// A socket of the right family, bound where that is asked for.
pub(super) fn socket(ask: &Ask, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target(ask)), kind, Some(protocol))?;
    if let Some(bind) = ask.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&widened(bind, ask.mapped).into())?;
    }
    let patience = Some(Duration::from_millis(ask.patience));
    socket.set_read_timeout(patience)?;
    socket.set_write_timeout(patience)?;
    Ok(socket)
}

/// Opens a connection; the answer has its names so far.
pub(super) fn open(ask: &Ask) -> io::Result<(TcpStream, Answer)> {
    let socket = socket(ask, Type::STREAM, Protocol::TCP)?;
    let target = SockAddr::from(target(ask));
    match ask.how {
        How::FastOpen => {
            let sent = socket.send_to_with_flags(ask.say.as_bytes(), &target, libc::MSG_FASTOPEN)?;
            if sent < ask.say.len() {
                return Err(io::Error::other("the SYN took only part of the data"));
            }
        }
        How::Nonblocking => socket.connect_timeout(&target, Duration::from_millis(ask.patience))?,
        How::Plain | How::Unconnected => socket.connect(&target)?,
    }
    socket.set_tcp_nodelay(true)?;
    let stream = TcpStream::from(socket);
    let mut answer = blank(Outcome::Closed);
    answer.local = stream.local_addr().ok();
    answer.peer = stream.peer_addr().ok();
    Ok((stream, answer))
}

/// Reads the server's first line (or HTTP answer), says what is to be said, and expects it back.
pub(super) fn converse(stream: &TcpStream, ask: &Ask, answer: &mut Answer) -> io::Result<()> {
    if ask.kind == Kind::Http {
        return http(stream, ask, answer);
    }
    let line = if ask.how == How::FastOpen { read_line(stream)? } else { read_only_line(stream)? };
    if ask.how != How::FastOpen {
        (&mut &*stream).write_all(ask.say.as_bytes())?;
    }
    let mut back = vec![0; ask.say.len()];
    (&mut &*stream).read_exact(&mut back)?;
    if back != ask.say.as_bytes() {
        return Err(io::Error::other("the echo differs from what was said"));
    }
    names(&line, answer);
    Ok(())
}

/// A line that nothing follows before we have said something.
fn read_only_line(mut stream: &TcpStream) -> io::Result<String> {
    let (mut line, mut have) = ([0; 256], 0);
    loop {
        if let Some(end) = line[..have].iter().position(|byte| *byte == b'\n') {
            return String::from_utf8(line[..end].to_vec()).map_err(io::Error::other);
        }
        match stream.read(&mut line[have..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            more => have += more,
        }
    }
}

/// Byte by byte, so that nothing of the echo that follows is taken along.
fn read_line(mut stream: &TcpStream) -> io::Result<String> {
    let mut line = Vec::with_capacity(64);
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.push(byte[0]);
    }
}

/// Takes `server|client` apart and calls the question served.
pub(super) fn names(line: &str, answer: &mut Answer) {
    let mut parts = line.trim_end().split('|');
    answer.server = parts.next().map(str::to_owned);
    answer.client = parts.next().and_then(|peer| peer.parse().ok()).map(plain);
    answer.outcome = if answer.client.is_some() {
        Outcome::Served
    } else {
        Outcome::Failed(format!("not an answer of a test pod: {line:?}"))
    };
}

fn http(stream: &TcpStream, ask: &Ask, answer: &mut Answer) -> io::Result<()> {
    let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", ask.say, ask.target);
    (&mut &*stream).write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (status, body) = read_response(&mut reader)?;
    match status {
        200 => names(&body, answer),
        other => answer.outcome = Outcome::Status(other),
    }
    Ok(())
}

/// Status and body of one HTTP/1.1 answer with a content length.
fn read_response(reader: &mut impl BufRead) -> io::Result<(u16, String)> {
    let bad = |what: &str| io::Error::other(format!("not an HTTP answer: {what}"));
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if status.is_none() {
            status = Some(line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| bad(line))?);
        } else if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|_| bad(line))?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status.unwrap_or(0), String::from_utf8_lossy(&body).into_owned()))
}
