//! A connection: its two sockets, how far it has come with reaching a backend, and a direction each way.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sheave_model::Frontend;
use socket2::Socket;

use super::attempts::Attempts;
use super::flow::{Ends, Failure, Flow, Progress, Side, Tell, Tools};
use super::upstream;
use crate::metrics::{Direction, Reason};
use crate::userspace::sys::{self, Event, Interest};
use crate::userspace::view::Target;
use crate::userspace::worker::Open;

/// Which of a connection's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    /// Towards the client.
    Client,
    /// Towards the backend.
    Backend,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Who connected.
    pub(crate) peer: SocketAddr,
    /// What to.
    pub(crate) frontend: Frontend,
    /// What that led to when the connection came.
    pub(crate) target: Rc<Target>,
    /// When that was.
    pub(crate) began: Instant,
    /// Who is being tried, or was reached.
    pub(crate) backend: SocketAddr,
    /// Tries so far.
    pub(crate) tries: u8,
    /// Exists from the first failed try until a backend is reached.
    pub(crate) attempts: Option<Box<Attempts>>,
    /// Whether a backend was reached.
    pub(crate) connected: bool,
    /// Whether the backend's socket looks after its peer.
    kept_alive: bool,
    /// Whether small writes to the backend go out at once.
    prompt: bool,
    client: Socket,
    client_side: Side,
    /// Whether it waits for its next turn.
    pub(crate) queued: bool,
    /// What each socket is watched for: client, backend.
    pub(crate) watched: [Option<Interest>; 2],
    upstream: Option<Socket>,
    upstream_side: Side,
    inwards: Flow,
    outwards: Flow,
    lost: Option<Lost>,
    _open: Open,
}

/// A socket that is gone while the other one still has to deliver what came from it: an answer that a server gives before
/// it resets, or the end of one that a client reads slowly.
#[derive(Debug)]
struct Lost {
    leg: Leg,
    /// Nothing where its stream was over.
    error: Option<io::Error>,
    /// Whether a look at what is left to deliver is due.
    looked_for: bool,
}

/// What became of a connection after it was worked on.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It waits for its sockets.
    Waiting,
    /// It has more to do in the next turn.
    More,
    /// It waits for the kernel to deliver what it has; to be looked at again after a while.
    Delivering,
    /// Both directions have ended.
    Done,
    /// The backend was not reached.
    Unreached(Reason),
    /// This leg broke; the socket that hasn't failed is to be reset.
    Broken(Leg, io::Error),
}

impl Connection {
    /// One that was accepted, and has no upstream socket yet.
    pub(crate) fn new(
        client: Socket,
        peer: SocketAddr,
        began: Instant,
        (frontend, target): (Frontend, Rc<Target>),
        open: Open,
    ) -> Self {
        Self {
            peer,
            frontend,
            target,
            began,
            backend: peer, // replaced with the first try
            tries: 0,
            attempts: None,
            connected: false,
            kept_alive: false,
            prompt: false,
            queued: false,
            client,
            // Its first bytes are often there when it is accepted.
            client_side: Side { readable: true, writable: true, ..Side::default() },
            watched: [None; 2],
            upstream: None,
            upstream_side: Side::default(),
            inwards: Flow::new(Direction::In),
            outwards: Flow::new(Direction::Out),
            lost: None,
            _open: open,
        }
    }

    /// Takes the socket of a new try.
    pub(crate) fn try_with(&mut self, upstream: Socket) {
        self.upstream = Some(upstream);
        // Over a virtual link a handshake is often through before connect() returns: writing shows it.
        self.upstream_side = Side { writable: true, ..Side::default() };
        self.watched[Leg::Backend as usize] = None;
        self.tries = self.tries.saturating_add(1);
    }

    /// Gives up the socket of a try that failed.
    pub(crate) fn drop_try(&mut self) {
        self.upstream = None;
    }

    /// One of its sockets; the backend's exists while one is tried or reached.
    pub(crate) fn socket(&self, leg: Leg) -> Option<&Socket> {
        match leg {
            Leg::Client => Some(&self.client),
            Leg::Backend => self.upstream.as_ref(),
        }
    }

    /// What a socket has to be watched for. Room to write only where it is waited for, because that would be told at once
    /// for every new socket.
    pub(crate) fn wanted(&self, leg: Leg) -> Interest {
        let blocked = match leg {
            Leg::Client => !self.client_side.writable,
            // A try says by it that it has come through.
            Leg::Backend => !self.upstream_side.writable || !self.connected,
        };
        if blocked { Interest::ReadWrite } else { Interest::Read }
    }

    /// Takes note of what the kernel says. A failure for which the other socket is to be reset is returned.
    pub(crate) fn note(&mut self, leg: Leg, event: Event) -> Option<io::Error> {
        let (side, flow, socket) = match leg {
            Leg::Client => (&mut self.client_side, &self.inwards, Some(&self.client)),
            Leg::Backend => (&mut self.upstream_side, &self.outwards, self.upstream.as_ref()),
        };
        side.readable |= event.readable();
        side.closing |= event.closing();
        side.writable |= event.writable();
        let socket = socket?;
        if event.urgent() && !std::mem::replace(&mut side.urgent, true) {
            // The urgent byte (RFC 6093) is to stay in its place among the others. Clients' sockets inherit that; backends
            // hardly ever send any.
            let _ = socket.set_out_of_band_inline(true);
        }
        if leg == Leg::Backend && !self.connected && event.writable() {
            if event.closing()
                && let Ok(Some(error)) = socket.take_error()
            {
                return Some(error);
            }
            self.connected = true;
            return None;
        }
        if !event.failed() {
            return None;
        }
        // Seen by nobody else: that the second socket is gone too, and a client that resets what the backend doesn't take.
        let unseen = match &self.lost {
            Some(lost) => lost.leg != leg,
            None => leg == Leg::Client && flow.holds(),
        };
        if !unseen && self.lost.is_none() && flow.ended() {
            // All that it had to say has been passed on; what it can't be told any more is thrown away.
            self.lose(leg, None);
            return None;
        }
        unseen.then(|| socket.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
    }

    /// A socket is gone, and the other one isn't done.
    fn lose(&mut self, leg: Leg, error: Option<io::Error>) {
        match leg {
            Leg::Client => self.outwards.discard(),
            Leg::Backend => self.inwards.discard(),
        }
        self.lost = Some(Lost { leg, error, looked_for: false });
    }

    /// Whether it asked to be looked at, which this answers.
    pub(crate) fn looks(&mut self) -> bool {
        self.lost.as_mut().is_some_and(|lost| std::mem::take(&mut lost.looked_for))
    }

    /// Has the backend's socket look after its peer. Not done at once, because most connections are over before it matters.
    pub(crate) fn keep_alive(&mut self) {
        if let Some(socket) = self.upstream.as_ref().filter(|_| !self.kept_alive) {
            // Where it fails the socket has failed, which the next read says.
            let _ = upstream::keep_alive(socket);
            self.kept_alive = true;
        }
    }

    /// Moves what can be moved, in both directions.
    pub(crate) fn run(&mut self, tools: &mut Tools) -> Outcome {
        let Some(upstream) = &self.upstream else { return Outcome::Waiting };
        if self.inwards.moved() && !self.prompt && self.client_side.readable && !self.client_side.closing {
            // Nagle's algorithm holds back a second small write and never the first, which many connections end with.
            let _ = upstream.set_tcp_nodelay(true);
            self.prompt = true;
        }
        let counters = &self.target.counters;
        let (client, client_side, upstream_side) = (&self.client, &mut self.client_side, &mut self.upstream_side);
        let mut ends = Ends { from: client, from_side: client_side, to: upstream, to_side: upstream_side };
        let first = !self.connected;
        let end = if first { Tell::NotYet } else { tell(&self.outwards) };
        let mut inwards = match self.inwards.run(&mut ends, tools, counters, end) {
            Ok(progress) => progress,
            Err(Failure::To(e)) if first && !self.inwards.moved() => return Outcome::Unreached(reason(&e)),
            // It may have answered before.
            Err(Failure::To(e)) => {
                self.lose(Leg::Backend, Some(e));
                Progress::More
            }
            Err(Failure::From(e)) => return self.broken(e, Leg::Client),
        };
        if first {
            // What was written proves that the handshake is through; where nothing was, the kernel tells.
            self.connected = self.inwards.moved();
            if !self.connected {
                return Outcome::Waiting;
            }
            if self.inwards.ending() {
                inwards = Progress::More; // nothing will say again that it has an end to pass on
            }
        }
        let Some(upstream) = &self.upstream else { return Outcome::Waiting };
        let counters = &self.target.counters;
        let (client, client_side, upstream_side) = (&self.client, &mut self.client_side, &mut self.upstream_side);
        let mut ends = Ends { from: upstream, from_side: upstream_side, to: client, to_side: client_side };
        let outwards = match self.outwards.run(&mut ends, tools, counters, tell(&self.inwards)) {
            Ok(progress) => progress,
            Err(Failure::From(e)) => {
                self.outwards.end();
                if self.lost.is_none() {
                    self.lose(Leg::Backend, Some(e));
                    inwards = Progress::More;
                }
                Progress::Ended
            }
            Err(Failure::To(e)) => return self.broken(e, Leg::Client),
        };
        if self.lost.is_some() && inwards != Progress::More && outwards != Progress::More {
            return self.deliver();
        }
        match (inwards, outwards) {
            (Progress::Ended, Progress::Ended) => Outcome::Done,
            (Progress::More, _) | (_, Progress::More) => Outcome::More,
            _ => Outcome::Waiting,
        }
    }

    /// Ends a connection of which one socket is gone, once the other has delivered everything.
    fn deliver(&mut self) -> Outcome {
        let Some(lost) = &mut self.lost else { return Outcome::Waiting };
        let (survivor, socket, to, from) = match lost.leg {
            Leg::Client => (Leg::Backend, self.upstream.as_ref(), &self.inwards, &self.outwards),
            Leg::Backend => (Leg::Client, Some(&self.client), &self.outwards, &self.inwards),
        };
        let delivered = || socket.is_none_or(|socket| sys::unacknowledged(socket).unwrap_or(0) == 0);
        if !to.ended() {
            return Outcome::Waiting;
        }
        // An answer that broke off is followed by a reset, and one that was complete by an orderly end.
        if !delivered() && (lost.error.is_some() || !from.ended()) {
            // Nothing says when the last byte was acknowledged.
            let asked = std::mem::replace(&mut lost.looked_for, true);
            return if asked { Outcome::Waiting } else { Outcome::Delivering };
        }
        let (failed, error) = (lost.leg, lost.error.take());
        if delivered() {
            self.reset(survivor);
        }
        error.map_or(Outcome::Done, |error| Outcome::Broken(failed, error))
    }

    /// The error of a socket that took nothing more resets the other one, as without a proxy.
    fn broken(&self, error: io::Error, failed: Leg) -> Outcome {
        self.reset(if failed == Leg::Client { Leg::Backend } else { Leg::Client });
        Outcome::Broken(failed, error)
    }

    /// Ends it before its time. Whoever waits for more sees a reset: an orderly end would say that this was all.
    pub(crate) fn cut(&self) {
        for (leg, flow) in [(Leg::Client, &self.outwards), (Leg::Backend, &self.inwards)] {
            if !flow.ended() {
                self.reset(leg);
            }
        }
    }

    /// Makes the close of a socket, which follows, a reset.
    pub(crate) fn reset(&self, leg: Leg) {
        if let Some(socket) = self.socket(leg) {
            reset(socket);
        }
    }
}

/// Whether the end of a direction has to be told, seeing the other one.
fn tell(other: &Flow) -> Tell {
    if other.ended() { Tell::No } else { Tell::Yes }
}

/// Makes the close of a socket, which follows, a reset.
pub(crate) fn reset(socket: &Socket) {
    // Where it fails the socket is gone already, which is what is wanted.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// What a failed try is counted as.
pub(crate) fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::Refused,
        io::ErrorKind::TimedOut => Reason::Timeout,
        _ => Reason::Unreachable,
    }
}
