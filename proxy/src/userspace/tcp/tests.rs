//! Directions and connections over loopback sockets, without a listener before them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use prometheus::IntGauge;
use socket2::Socket;

use super::flow::{Ends, Failure, Flow, Progress, Side, Tell, Tools};
use super::pipes::Pipes;
use crate::metrics::{Direction, PortCounters};
use crate::userspace::budget::Budget;

/// A peer's end, blocking, and ours, which never blocks.
fn pair() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let ours = listener.accept().unwrap().0;
    ours.set_nonblocking(true).unwrap();
    (peer, ours.into())
}

struct Direct {
    from: Socket,
    to: Socket,
    flow: Flow,
    tools: Tools,
    counters: PortCounters,
}

impl Direct {
    fn new(from: Socket, to: Socket) -> Self {
        let tools = Tools::new(Pipes::new(IntGauge::new("x", "x").unwrap(), Budget::of(100)));
        Self { from, to, flow: Flow::new(Direction::In), tools, counters: PortCounters::default() }
    }

    fn step(&mut self, tell: Tell) -> Result<Progress, Failure> {
        // As after an event that says everything; what isn't so is found out.
        let mut from_side = Side { readable: true, closing: true, ..Side::default() };
        let mut to_side = Side { writable: true, ..Side::default() };
        let mut ends = Ends { from: &self.from, from_side: &mut from_side, to: &self.to, to_side: &mut to_side };
        self.flow.run(&mut ends, &mut self.tools, &self.counters, tell)
    }

    fn pipes(&self) -> &Rc<Pipes> {
        &self.tools.pipes
    }
}

#[test]
fn the_end_goes_through_behind_the_last_byte() {
    let ((mut client, from), (mut backend, to)) = (pair(), pair());
    let mut direct = Direct::new(from, to);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(direct.step(Tell::NotYet).unwrap(), Progress::Waiting, "the end waits for the other side");
    assert_eq!(direct.step(Tell::Yes).unwrap(), Progress::Ended);
    let mut text = String::new();
    backend.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    assert_eq!(direct.counters.bytes_total(Direction::In), 8);
    assert!(direct.flow.moved() && direct.flow.ended());
}

#[test]
fn ten_megabytes_go_unchanged_through_a_slow_reader() {
    let ((mut client, from), (mut backend, to)) = (pair(), pair());
    let mut direct = Direct::new(from, to);
    let bytes: Vec<u8> = (0..10_usize << 20).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect();
    let sent = bytes.clone();
    let write = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let read = std::thread::spawn(move || {
        let (mut seen, mut chunk) = (Vec::new(), vec![0; 100_000]);
        loop {
            let count = backend.read(&mut chunk).unwrap();
            if count == 0 {
                return seen;
            }
            seen.extend_from_slice(&chunk[..count]);
            if seen.len() % 7 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    while direct.step(Tell::Yes).unwrap() != Progress::Ended {
        std::thread::yield_now();
    }
    assert_eq!(direct.pipes().lent(), 0, "nothing is in flight, so no pipe is held");
    assert!(read.join().unwrap() == bytes, "the stream was changed on its way");
    assert_eq!(direct.counters.bytes_total(Direction::In), 10 << 20);
    drop(write.join().unwrap());
}

#[test]
fn a_reset_is_an_error_of_the_side_it_came_from() {
    let ((client, from), (_backend, to)) = (pair(), pair());
    let mut direct = Direct::new(from, to);
    Socket::from(client).set_linger(Some(Duration::ZERO)).unwrap();
    match direct.step(Tell::Yes) {
        Err(Failure::From(e)) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_dead_backend_did_not_take_is_held_for_the_next() {
    let ((mut client, from), (mut backend, to)) = (pair(), pair());
    // A socket that was never connected stands for a try that failed.
    let dead = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None).unwrap();
    let mut direct = Direct::new(from, dead);
    client.write_all(b"first bytes").unwrap();
    assert!(matches!(direct.step(Tell::NotYet), Err(Failure::To(_))));
    assert!(!direct.flow.moved());
    direct.to = to;
    assert_eq!(direct.step(Tell::NotYet).unwrap(), Progress::Waiting);
    let mut seen = [0; 11];
    backend.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"first bytes");
}
