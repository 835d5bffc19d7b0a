//! A thread's event loop: accepts, reaches backends, moves bytes.
//!
//! Plain epoll and not an async runtime. A connection that carries one byte costs a reader of the kernel's queue, two
//! sockets and a dozen system calls; tasks, wakers and registrations would add a fifth to that (measured against the
//! smallest blocking proxy), and each idle connection would weigh a kilobyte more.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sheave_model::{AppProtocol, Frontend, Protocol};
use socket2::Socket;
use tokio::sync::{mpsc, watch};

use super::attempts::{Attempts, TRY};
use super::connection::{Connection, Leg, Outcome, reset};
use super::flow::Tools;
use super::pipes::Pipes;
use super::table::{Table, Token};
use super::upstream::{self, Source};
use crate::metrics::{Path, Reason};
use crate::userspace::Stop;
use crate::userspace::sys::{self, Alarm, Epoll, Event, Interest, Waker};
use crate::userspace::view::{Target, View};
use crate::userspace::worker::{Handover, Open, Shared};

/// Descriptors of a connection: its two sockets.
const DESCRIPTORS: u64 = 2;
/// Connections accepted in one turn while more keep coming; one at a time otherwise, which spares a call that finds none.
const BURST: usize = 16;
/// How long the thread pauses where the system is out of descriptors or memory, so as not to ask all the time.
const EXHAUSTED: Duration = Duration::from_millis(1);
/// Tries of one connection at most, however many backends refuse within 5 s.
const MOST_TRIES: u8 = 64;

const WAKER: u64 = u64::MAX;
const ALARM: u64 = u64::MAX - 1;
const LISTENERS: u64 = Token::END;

/// What a thread is made from.
pub(crate) struct Parts {
    /// What all threads share.
    pub(crate) shared: Arc<Shared>,
    /// Its listeners, listening.
    pub(crate) listeners: Vec<Socket>,
    /// Wakes it when `stopped` changes.
    pub(crate) waker: Arc<Waker>,
    /// How far stopping has come.
    pub(crate) stopped: watch::Receiver<Stop>,
    /// Takes connections that speak HTTP.
    pub(crate) http: mpsc::Sender<Handover>,
}

/// See the module's description.
pub(crate) struct Loop {
    parts: Parts,
    view: View,
    epoll: Epoll,
    tools: Tools,
    table: Table,
    /// When a try has lasted too long, or, where it has come through, its socket is told to look after its peer; and when
    /// to look at what is being delivered. All wait equally long, so they come in order.
    timers: VecDeque<(Instant, Token)>,
    /// Connections that have more to do.
    more: Vec<Token>,
    alarm: Alarm,
    random: u64,
    busy: bool,
    /// When the last wait ended: near enough for timers, and a clock read less for each.
    now: Instant,
}

impl Loop {
    /// Watches the listeners.
    ///
    /// # Errors
    /// Where this process has no descriptors left.
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&*parts.waker, WAKER, Interest::Pending)?;
        let alarm = Alarm::new()?;
        epoll.add(&alarm, ALARM, Interest::Pending)?;
        for (index, listener) in parts.listeners.iter().enumerate() {
            epoll.add(listener, LISTENERS + index as u64, Interest::Pending)?;
        }
        let shared = &parts.shared;
        let view = View::new(shared.snapshots.clone(), shared.services.clone());
        let tools = Tools::new(Pipes::new(shared.metrics.pipes.clone(), shared.budget.clone()));
        let (table, timers, more) = (Table::default(), VecDeque::new(), Vec::new());
        let (random, now) = (rand::random::<u64>() | 1, Instant::now());
        Ok(Self { parts, view, epoll, tools, table, timers, more, alarm, random, busy: false, now })
    }

    /// Serves until it is stopped and, unless it is to end at once, its connections have ended.
    ///
    /// # Errors
    /// Where the kernel no longer says what happens.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            let happened = self.epoll.wait(!self.more.is_empty())?;
            self.now = Instant::now();
            let mut accepted = false;
            for index in 0..happened {
                let event = self.epoll.event(index);
                match event.token {
                    WAKER => self.parts.waker.settle(),
                    ALARM => {
                        self.alarm.rung();
                        self.expire();
                    }
                    number if number >= LISTENERS => {
                        accepted = true;
                        self.accept((number - LISTENERS) as usize);
                    }
                    number => self.guarded(Token::of(number), |this, token| this.happened(token, event)),
                }
            }
            self.busy = accepted;
            for token in std::mem::take(&mut self.more) {
                self.guarded(token, |this, token| {
                    if let Some(connection) = this.table.get(token) {
                        connection.queued = false;
                    }
                    this.work(token);
                });
            }
            self.set_alarm();
            let stop = *self.parts.stopped.borrow();
            match stop {
                Stop::No | Stop::HoldBack => {}
                Stop::Drain => self.close_listeners(),
                Stop::Now => {
                    self.table.iter().for_each(Connection::cut);
                    return Ok(());
                }
            }
            if self.parts.listeners.is_empty() && self.table.is_empty() {
                return Ok(());
            }
        }
    }

    /// Takes what is waiting, and then nothing more.
    fn close_listeners(&mut self) {
        self.busy = true;
        for index in 0..self.parts.listeners.len() {
            while self.accept(index) == BURST {}
        }
        self.parts.listeners.clear();
    }

    /// Has a panic end one connection and not the thread with all of them.
    fn guarded(&mut self, token: Token, work: impl FnOnce(&mut Self, Token)) {
        if catch_unwind(AssertUnwindSafe(|| work(self, token))).is_err() {
            self.parts.shared.panics.inc();
            if let Some(connection) = self.table.remove(token) {
                connection.cut();
            }
        }
    }

    /// Accepts at one listener. Returns how many connections came.
    fn accept(&mut self, index: usize) -> usize {
        let most = if self.busy { BURST } else { 1 };
        for count in 0..most {
            match sys::accept(&self.parts.listeners[index]) {
                Ok((socket, peer)) => self.take(socket, peer),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return count,
                Err(e) if exhausted(&e) => {
                    self.parts.shared.metrics.tcp.limited.inc();
                    std::thread::sleep(EXHAUSTED);
                    return count;
                }
                Err(e) => tracing::debug!(error = %e, "a connection ended before it was accepted"),
            }
        }
        most
    }

    /// Starts what an accepted connection needs, or resets it.
    fn take(&mut self, socket: Socket, peer: std::net::SocketAddr) {
        let shared = self.parts.shared.clone();
        let metrics = &shared.metrics.tcp;
        metrics.accepts.inc();
        let Some(local) = socket.local_addr().ok().and_then(|a| a.as_socket()) else {
            return; // it is gone already
        };
        let frontend = Frontend::new(local.ip(), local.port(), Protocol::Tcp);
        let Some(target) = self.view.target(&frontend) else {
            metrics.unknown.inc();
            return reset(&socket);
        };
        let Some(share) = shared.budget.take(DESCRIPTORS) else {
            return limited(&shared, &target, &socket);
        };
        target.counters.connections(Path::Listener, 1);
        let open = Open::new(shared.clone(), share);
        if target.app == AppProtocol::Http {
            if let Err(refused) = self.parts.http.try_send(Handover { stream: socket.into(), open }) {
                limited(&shared, &target, &refused.into_inner().stream.into());
            }
            return;
        }
        let connection = Connection::new(socket, peer, self.now, (frontend, target), open);
        let token = self.table.insert(Box::new(connection));
        self.guarded(token, |this, token| this.attempt(token, None));
    }

    /// Tries the next backend after a try has failed, or the first. Ends the connection where none is left.
    fn attempt(&mut self, token: Token, mut failed: Option<Reason>) {
        loop {
            let random = self.random();
            let Some(connection) = self.table.get(token) else { return };
            let backend = match failed {
                None => connection.target.backends.get(random % connection.target.backends.len().max(1)).copied(),
                Some(reason) => {
                    connection.drop_try();
                    let began = connection.began;
                    let attempts = connection.attempts.get_or_insert_with(|| Box::new(Attempts::since(began)));
                    attempts.failed(connection.backend, reason);
                    // Each further try sees the endpoints of its time; a frontend that is gone has none.
                    let target = self.view.target(&connection.frontend);
                    let backends = target.as_ref().map(|t| &*t.backends).unwrap_or_default();
                    attempts.next(backends, self.now, random).filter(|_| connection.tries < MOST_TRIES)
                }
            };
            let Some(backend) = backend else {
                return self.give_up(token, failed.unwrap_or(Reason::NoEndpoint));
            };
            connection.backend = backend;
            let keeps = self.view.keeps_client(connection.target.kind, connection.peer.ip(), backend);
            let source = match (keeps, failed) {
                (false, _) => Source::Node,
                (true, None) => Source::Client(connection.peer),
                // A connection of the client's own, straight to the backend, may have its port there.
                (true, Some(_)) => Source::ClientAddress(connection.peer.ip()),
            };
            match upstream::begin(backend, source, self.parts.shared.own_mark) {
                Ok(socket) => {
                    connection.try_with(socket);
                    let token = token.with(Leg::Client, connection.tries);
                    self.timers.push_back((self.now + TRY, token));
                    return self.work(token);
                }
                Err(error) => {
                    tracing::debug!(%backend, %error, "backend not reached");
                    connection.tries = connection.tries.saturating_add(1);
                    failed = Some(super::connection::reason(&error));
                }
            }
        }
    }

    /// No backend was reached.
    fn give_up(&mut self, token: Token, reason: Reason) {
        if let Some(connection) = self.table.remove(token) {
            connection.target.counters.error(reason);
            connection.reset(Leg::Client);
            let Connection { peer, frontend, target, .. } = &*connection;
            tracing::debug!(%peer, %frontend, ?reason, service = %target.service, "no backend reached");
        }
    }

    /// The kernel says something of a socket.
    fn happened(&mut self, token: Token, event: Event) {
        let Some(connection) = self.table.get(token) else { return };
        if token.leg == Leg::Backend && token.tries != connection.tries {
            return; // of a try that was given up
        }
        match connection.note(token.leg, event) {
            None => self.work(token),
            Some(error) if !connection.connected && token.leg == Leg::Backend => {
                self.attempt(token, Some(super::connection::reason(&error)));
            }
            Some(error) => {
                connection.reset(if token.leg == Leg::Client { Leg::Backend } else { Leg::Client });
                self.broken(token, token.leg, &error);
            }
        }
    }

    /// Moves what a connection has to move.
    fn work(&mut self, token: Token) {
        let Some(connection) = self.table.get(token) else { return };
        match connection.run(&mut self.tools) {
            Outcome::Done => drop(self.table.remove(token)),
            Outcome::Broken(failed, error) => self.broken(token, failed, &error),
            Outcome::Unreached(reason) => self.attempt(token, Some(reason)),
            outcome => {
                if matches!(outcome, Outcome::Delivering) {
                    self.timers.push_back((self.now + TRY, token));
                }
                if matches!(outcome, Outcome::More) && !std::mem::replace(&mut connection.queued, true) {
                    self.more.push(token);
                }
                if let Err(error) = watch(&self.epoll, connection, token) {
                    connection.cut();
                    self.broken(token, Leg::Backend, &error);
                }
            }
        }
    }

    /// A leg broke. Only the backend's is an error of the Service's: clients may end by a reset, and many do.
    fn broken(&mut self, token: Token, failed: Leg, error: &io::Error) {
        if let Some(connection) = self.table.remove(token) {
            if failed == Leg::Backend {
                connection.target.counters.error(Reason::Broken);
            }
            let Connection { peer, frontend, .. } = &*connection;
            tracing::debug!(%peer, %frontend, ?failed, %error, "connection broken");
        }
    }

    /// Sets the alarm for the first connection that still waits for its time. Those that have ended meanwhile want none:
    /// under load that is nearly all of them, and each would wake the thread once more, a second later.
    fn set_alarm(&mut self) {
        while let Some(&(when, token)) = self.timers.front() {
            if self.table.get(token).is_some() {
                return self.alarm.set(when.saturating_duration_since(self.now));
            }
            self.timers.pop_front();
        }
    }

    /// Does what the time has come for.
    fn expire(&mut self) {
        while let Some(&(_, token)) = self.timers.front().filter(|(when, _)| *when <= self.now) {
            self.timers.pop_front();
            self.guarded(token, |this, token| {
                let Some(connection) = this.table.get(token) else { return };
                if connection.looks() {
                    this.work(token);
                } else if connection.connected {
                    connection.keep_alive();
                } else if connection.tries == token.tries {
                    this.attempt(token, Some(Reason::Timeout));
                }
            });
        }
    }

    /// Marsaglia's xorshift64*: spreads connections; nobody gains by guessing it.
    fn random(&mut self) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize
    }
}

/// Has the kernel watch a connection's sockets for what it waits for.
fn watch(epoll: &Epoll, connection: &mut Connection, token: Token) -> io::Result<()> {
    for leg in [Leg::Client, Leg::Backend] {
        let wanted = connection.wanted(leg);
        let watched = connection.watched[leg as usize];
        let Some(socket) = connection.socket(leg) else { continue };
        let number = token.with(leg, connection.tries).number();
        match watched {
            None => epoll.add(socket, number, wanted)?,
            Some(Interest::Read) if wanted == Interest::ReadWrite => epoll.modify(socket, number, wanted)?,
            _ => continue,
        }
        connection.watched[leg as usize] = Some(wanted);
    }
    Ok(())
}

fn limited(shared: &Shared, target: &Rc<Target>, socket: &Socket) {
    shared.metrics.tcp.limited.inc();
    target.counters.error(Reason::Limit);
    reset(socket);
}

fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
