//! The table of UDP sessions: which backend a client's datagrams to a frontend go to, and the socket they leave by.
//!
//! All threads share it, because a client's datagrams may come in on any; a session's replies are received by the thread
//! that began it. It is bounded, and each session ends when it has been idle for long enough.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use socket2::Socket;
use tokio::sync::Notify;

use crate::metrics::PortCounters;
use crate::userspace::budget::{Budget, Share};

/// Idle time after which a session ends that no reply came for: nf_conntrack's `udp_timeout`.
pub(crate) const UNREPLIED: Duration = Duration::from_secs(30);
/// Idle time after which one ends that has had replies: what nf_conntrack long had as `udp_timeout_stream`.
pub(crate) const REPLIED: Duration = Duration::from_secs(180);
/// Sessions that the table has room for, where descriptors allow as many.
pub(crate) const MOST: usize = 65_536;

/// What tells sessions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    /// Who sends.
    pub(crate) client: SocketAddr,
    /// What it sends to.
    pub(crate) frontend: SocketAddr,
}

/// A session. Its times are milliseconds since the table was made; relaxed, because they order nothing.
#[derive(Debug)]
pub(crate) struct Session {
    /// What it belongs to.
    pub(crate) flow: Flow,
    /// Where its datagrams go.
    pub(crate) backend: SocketAddr,
    /// The Service port's counters.
    pub(crate) counters: Arc<PortCounters>,
    /// Tells the receiver that another session has taken this one's place.
    pub(crate) closed: Notify,
    socket: Arc<Socket>,
    /// Of the node's ports, where the backend sees the node.
    _port: Option<Share>,
    used: AtomicU64,
    replied: AtomicBool,
}

impl Session {
    /// A new one over a connected socket, which may hold one of the node's ports.
    pub(crate) fn new(
        flow: Flow,
        backend: SocketAddr,
        (socket, port): (Socket, Option<Share>),
        counters: Arc<PortCounters>,
    ) -> Self {
        let (used, replied) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { flow, backend, counters, closed: Notify::new(), socket: Arc::new(socket), _port: port, used, replied }
    }

    /// Its socket, connected to the backend.
    pub(crate) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Notes that a datagram passed.
    pub(crate) fn touch(&self, now: Duration, reply: bool) {
        self.used.store(now.as_millis() as u64, Ordering::Relaxed);
        if reply {
            self.replied.store(true, Ordering::Relaxed);
        }
    }

    /// When it ends if nothing more passes.
    pub(crate) fn ends(&self) -> Duration {
        let limit = if self.replied.load(Ordering::Relaxed) { REPLIED } else { UNREPLIED };
        Duration::from_millis(self.used.load(Ordering::Relaxed)) + limit
    }
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: DashMap<Flow, Arc<Session>>,
    count: AtomicUsize,
    most: usize,
    local: RangeInclusive<u16>,
    ports: Arc<Budget>,
    began: Instant,
}

/// What looking for a session gave.
#[derive(Debug)]
pub(crate) enum Found {
    /// One that stands.
    Old(Arc<Session>),
    /// One that was begun now; somebody has to receive its replies.
    New(Arc<Session>),
    /// None, because the table is full.
    Full,
}

impl Sessions {
    /// An empty table with room for `most`. `local` are the ports that sockets get which ask for none; half of the node's may
    /// be held by sessions.
    pub(crate) fn new(most: usize, local: RangeInclusive<u16>) -> Self {
        let ports = Budget::of(local.len() as u64 / 2);
        Self { table: DashMap::new(), count: AtomicUsize::new(0), most, local, ports, began: Instant::now() }
    }

    /// Whether a port is one that sockets get which ask for none.
    pub(crate) fn is_local(&self, port: u16) -> bool {
        self.local.contains(&port)
    }

    /// The time that sessions count in.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// One of the node's ports, unless sessions hold too many.
    pub(crate) fn port(&self) -> Option<Share> {
        self.ports.take(1)
    }

    /// The session of a flow. One whose backend `stands` denies is closed and replaced; `begin` makes a new one.
    ///
    /// # Errors
    /// Those of `begin`.
    pub(crate) fn find(
        &self,
        flow: Flow,
        stands: impl Fn(SocketAddr) -> bool,
        begin: impl FnOnce() -> io::Result<Session>,
    ) -> io::Result<Found> {
        if let Some(session) = self.table.get(&flow).filter(|session| stands(session.backend)) {
            return Ok(Found::Old(session.clone()));
        }
        match self.table.entry(flow) {
            Entry::Occupied(entry) if stands(entry.get().backend) => Ok(Found::Old(entry.get().clone())),
            Entry::Occupied(entry) => {
                entry.remove().closed.notify_one();
                self.count.fetch_sub(1, Ordering::Relaxed);
                self.insert(flow, begin()?)
            }
            Entry::Vacant(entry) => {
                if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                    return Ok(Found::Full);
                }
                let session = begin().map(Arc::new).inspect_err(|_| {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                })?;
                entry.insert(session.clone());
                Ok(Found::New(session))
            }
        }
    }

    fn insert(&self, flow: Flow, session: Session) -> io::Result<Found> {
        let session = Arc::new(session);
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(other) = self.table.insert(flow, session.clone()) {
            other.closed.notify_one();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(Found::New(session))
    }

    /// Takes a session out, unless another has its place already.
    pub(crate) fn remove(&self, session: &Arc<Session>) {
        if self.table.remove_if(&session.flow, |_, other| Arc::ptr_eq(session, other)).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ends every session whose frontend is `gone`; each is looked at once.
    pub(crate) fn end_gone(&self, gone: impl Fn(SocketAddr) -> bool) {
        self.table.retain(|flow, session| {
            let ends = gone(flow.frontend);
            if ends {
                session.closed.notify_one();
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            !ends
        });
    }

    /// Sessions in the table.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::net::UdpSocket;

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn session(flow: Flow, backend: SocketAddr) -> Session {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Session::new(flow, backend, (socket.into(), None), Arc::default())
    }

    #[test]
    fn a_session_that_had_replies_lives_longer() {
        let flow = Flow { client: address(1), frontend: address(2) };
        let session = session(flow, address(3));
        session.touch(Duration::from_secs(5), false);
        assert_eq!(session.ends(), Duration::from_secs(35));
        session.touch(Duration::from_secs(6), true);
        assert_eq!(session.ends(), Duration::from_secs(186));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Datagram { client: u16, gone: Option<u16>, choice: u16 },
        End { client: u16 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..5_u16, prop::option::of(0..3_u16), 0..3_u16)
                .prop_map(|(client, gone, choice)| Step::Datagram { client, gone, choice }),
            1 => (0..5_u16).prop_map(|client| Step::End { client }),
        ]
    }

    proptest! {
        /// A flow keeps its backend while that stands, moves when it is gone, and the table never holds more than it may.
        #[test]
        fn the_table_is_a_bounded_map_that_forgets_gone_backends(steps in prop::collection::vec(step(), 0..40)) {
            let sessions = Sessions::new(3, 1..=1);
            let mut reference: HashMap<u16, u16> = HashMap::new();
            let mut live: HashMap<u16, Arc<Session>> = HashMap::new();
            for step in steps {
                match step {
                    Step::Datagram { client, gone, choice } => {
                        let flow = Flow { client: address(client), frontend: address(99) };
                        let stands = |backend: SocketAddr| Some(backend.port()) != gone;
                        let found = sessions.find(flow, stands, || Ok(session(flow, address(choice)))).unwrap();
                        match (found, reference.get(&client).copied().filter(|b| Some(*b) != gone)) {
                            (Found::Old(s), Some(backend)) => prop_assert_eq!(s.backend.port(), backend),
                            (Found::New(s), None) => {
                                prop_assert_eq!(s.backend.port(), choice);
                                reference.insert(client, choice);
                                live.insert(client, s);
                            }
                            (Found::Full, None) => prop_assert_eq!(reference.len(), 3),
                            (found, expected) => prop_assert!(false, "{:?} where {:?} was expected", found, expected),
                        }
                    }
                    Step::End { client } => {
                        if let Some(session) = live.remove(&client) {
                            sessions.remove(&session);
                            reference.remove(&client);
                        }
                    }
                }
                prop_assert_eq!(sessions.len(), reference.len());
                prop_assert_eq!(sessions.table.len(), reference.len());
            }
        }
    }

    #[test]
    fn what_has_lost_its_place_takes_nothing_out() {
        let sessions = Sessions::new(3, 1..=1);
        let flow = Flow { client: address(1), frontend: address(99) };
        let found = |gone: bool| match sessions.find(flow, |_| !gone, || Ok(session(flow, address(5)))).unwrap() {
            Found::Old(s) | Found::New(s) => s,
            Found::Full => panic!("full"),
        };
        let (first, second) = (found(false), found(true));
        sessions.remove(&first);
        assert_eq!(sessions.len(), 1);
        sessions.remove(&second);
        assert_eq!(sessions.len(), 0);
    }
}
