//! One direction of a connection: takes what one socket has received and gives it to the other.
//!
//! A direction copies through the thread's buffer while little comes at a time, and splices through a pipe while the
//! buffer comes full, so that small messages cost two system calls and streams are not copied. An idle direction holds
//! neither buffer nor pipe.

use std::io::{self, Read};
use std::net::Shutdown;
use std::rc::Rc;

use socket2::Socket;

use super::pipes::{Pipe, Pipes};
use crate::metrics::{Direction, PortCounters};

/// Bytes that are copied at a time. A read that fills it starts splicing.
pub(crate) const COPY: usize = 16 << 10;

/// A splice that moves less than this ends splicing.
const TRICKLE: usize = 4 << 10;

/// Reads and bytes in one go; then other connections have their turn.
const TURNS: usize = 16;
const TURN_BYTES: usize = 1 << 20;

/// What is known of a socket. The kernel tells each change once, so what it said has to be remembered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Side {
    /// Reading may give something.
    pub(crate) readable: bool,
    /// The end or an error comes behind what can be read.
    pub(crate) closing: bool,
    /// Writing may be possible.
    pub(crate) writable: bool,
    /// Urgent data came: a read stops at its mark, so one that gives little has not emptied the socket, and splice never
    /// gets past it.
    pub(crate) urgent: bool,
}

/// One direction's progress.
#[derive(Debug)]
pub(crate) struct Flow {
    direction: Direction,
    splicing: bool,
    moved: bool,
    held: Held,
    state: State,
    discards: bool,
}

/// Bytes that were read and not yet written.
#[derive(Debug)]
enum Held {
    Nothing,
    Copied(Box<[u8]>, usize),
    Piped(Pipe),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes may come.
    Open,
    /// The end has come; what is held goes out before it.
    Ending,
    /// The other side has been told.
    Ended,
}

/// How far a direction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing more can be done until a socket says so.
    Waiting,
    /// There is more to do, in the next turn.
    More,
    /// Everything has gone through, the end too.
    Ended,
}

/// What to do when the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// Tell the other side.
    Yes,
    /// Nothing, because both sockets are about to be closed, which tells it as well.
    No,
    /// Wait: the other side isn't connected yet, and telling would undo its handshake.
    NotYet,
}

/// Why a direction can't go on.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The socket that is read has failed.
    From(io::Error),
    /// The socket that is written has failed; what was read for it is still held.
    To(io::Error),
}

/// What a thread lends to its flows.
#[derive(Debug)]
pub(crate) struct Tools {
    /// For copying.
    pub(crate) buffer: Box<[u8]>,
    /// For splicing.
    pub(crate) pipes: Rc<Pipes>,
}

impl Tools {
    /// A thread's own.
    pub(crate) fn new(pipes: Rc<Pipes>) -> Self {
        Self { buffer: vec![0; COPY].into(), pipes }
    }
}

/// A flow's two ends.
pub(crate) struct Ends<'a> {
    /// Is read.
    pub(crate) from: &'a Socket,
    /// What is known of it.
    pub(crate) from_side: &'a mut Side,
    /// Is written.
    pub(crate) to: &'a Socket,
    /// What is known of it.
    pub(crate) to_side: &'a mut Side,
}

impl Flow {
    /// Nothing has come yet.
    pub(crate) const fn new(direction: Direction) -> Self {
        Self { direction, splicing: false, moved: false, held: Held::Nothing, state: State::Open, discards: false }
    }

    /// Whether bytes were read that the other side hasn't taken.
    pub(crate) fn holds(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Whether the end has come and has yet to go through.
    pub(crate) fn ending(&self) -> bool {
        self.state == State::Ending
    }

    /// From now on throws away what comes, because nobody is left to take it.
    pub(crate) fn discard(&mut self) {
        self.held = Held::Nothing;
        self.discards = true;
        if self.state == State::Ending {
            self.state = State::Ended;
        }
    }

    /// Ends it: nothing more comes.
    pub(crate) fn end(&mut self) {
        self.held = Held::Nothing;
        self.state = State::Ended;
    }

    /// Whether the end has gone through.
    pub(crate) fn ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether the other side has taken any byte.
    pub(crate) fn moved(&self) -> bool {
        self.moved
    }

    /// Moves what can be moved.
    ///
    /// # Errors
    /// What the sockets say.
    pub(crate) fn run(
        &mut self,
        ends: &mut Ends<'_>,
        tools: &mut Tools,
        counters: &PortCounters,
        tell: Tell,
    ) -> Result<Progress, Failure> {
        let mut bytes = 0;
        for _ in 0..TURNS {
            if self.state == State::Ended {
                return Ok(Progress::Ended);
            }
            if !self.give(ends).map_err(Failure::To)? {
                return Ok(Progress::Waiting);
            }
            if self.state == State::Ending {
                match tell {
                    Tell::Yes => ends.to.shutdown(Shutdown::Write).map_err(Failure::To)?,
                    Tell::No => {}
                    Tell::NotYet => return Ok(Progress::Waiting),
                }
                self.state = State::Ended;
                return Ok(Progress::Ended);
            }
            if !ends.from_side.readable {
                return Ok(Progress::Waiting);
            }
            let taken = match (self.discards, self.splicing) {
                (true, _) => throw_away(ends, tools)?,
                (false, true) => self.splice(ends, tools, counters)?,
                (false, false) => self.copy(ends, tools, counters)?,
            };
            match taken {
                Some(0) if self.discards => self.state = State::Ended,
                Some(0) => self.state = State::Ending,
                Some(count) => bytes += count,
                None => ends.from_side.readable = false,
            }
            if bytes >= TURN_BYTES {
                break;
            }
        }
        Ok(Progress::More)
    }

    /// Gives what is held. False where the other side takes no more now.
    fn give(&mut self, ends: &mut Ends<'_>) -> io::Result<bool> {
        loop {
            if matches!(self.held, Held::Nothing) {
                return Ok(true);
            }
            if !ends.to_side.writable {
                return Ok(false);
            }
            let (given, left) = match &mut self.held {
                Held::Nothing => return Ok(true),
                Held::Copied(bytes, at) => (would_block(ends.to.send(&bytes[*at..]))?, bytes.len() - *at),
                Held::Piped(pipe) => {
                    let held = pipe.held();
                    (would_block(pipe.drain(ends.to))?, held)
                }
            };
            self.moved |= given.is_some();
            match given {
                None => ends.to_side.writable = false,
                Some(given) if given == left => self.held = Held::Nothing,
                Some(given) => {
                    if let Held::Copied(_, at) = &mut self.held {
                        *at += given;
                    }
                }
            }
        }
    }

    /// Reads into the thread's buffer and writes at once what the other side takes; holds the rest. `None` where there is
    /// nothing to read.
    fn copy(
        &mut self,
        ends: &mut Ends<'_>,
        tools: &mut Tools,
        counters: &PortCounters,
    ) -> Result<Option<usize>, Failure> {
        let mut from = ends.from;
        let Some(count) = would_block(from.read(&mut tools.buffer)).map_err(Failure::From)? else { return Ok(None) };
        let plain = !ends.from_side.urgent;
        self.splicing = count == COPY && plain;
        if count < COPY && plain && !ends.from_side.closing {
            ends.from_side.readable = false; // that was all; the next byte is told
        }
        let bytes = &tools.buffer[..count];
        if bytes.is_empty() {
            return Ok(Some(0));
        }
        counters.bytes(self.direction, count as u64);
        let given = if ends.to_side.writable { would_block(ends.to.send(bytes)) } else { Ok(None) };
        let gone = *given.as_ref().unwrap_or(&None);
        match gone {
            Some(_) => self.moved = true,
            None => ends.to_side.writable = false,
        }
        let gone = gone.unwrap_or_default();
        if gone < count {
            self.held = Held::Copied(bytes[gone..].into(), 0);
        }
        given.map_err(Failure::To)?;
        Ok(Some(count))
    }

    /// Takes what there is into a pipe. `None` where there is nothing to read.
    fn splice(
        &mut self,
        ends: &mut Ends<'_>,
        tools: &mut Tools,
        counters: &PortCounters,
    ) -> Result<Option<usize>, Failure> {
        let (true, Some(mut pipe)) = (!ends.from_side.urgent, tools.pipes.lend()) else {
            return self.copy(ends, tools, counters); // where no descriptors are left, copying needs none
        };
        let count = would_block(pipe.fill(ends.from)).map_err(Failure::From)?;
        if let Some(count) = count {
            self.splicing = count >= TRICKLE;
            self.held = Held::Piped(pipe);
            counters.bytes(self.direction, count as u64);
        }
        Ok(count)
    }
}

/// Reads what nobody wants. `None` where there is nothing to read.
fn throw_away(ends: &Ends<'_>, tools: &mut Tools) -> Result<Option<usize>, Failure> {
    let mut from = ends.from;
    would_block(from.read(&mut tools.buffer)).map_err(Failure::From)
}

/// Makes "not now" a value.
fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}
