//! What is said between a test and a test pod: requests and answers, as JSON lines.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Says `name|peer`, then echoes; after the client's end of stream says `end N` with the bytes echoed.
    Tcp,
    /// Like [`Kind::Tcp`], but closes right after its first line.
    Hello,
    /// HTTP/1.1 with keep-alive; the body is `name|peer`.
    Http,
    /// Answers each datagram with `name|peer|datagram`.
    Udp,
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "tcp" => Self::Tcp,
            "hello" => Self::Hello,
            "http" => Self::Http,
            "udp" => Self::Udp,
            _ => anyhow::bail!("no such kind of server: {text}"),
        })
    }
}

impl Kind {
    /// As [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Hello => "hello",
            Self::Http => "http",
            Self::Udp => "udp",
        }
    }
}

/// A command to a test pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Opens one more server. Answer: nothing.
    Listen {
        /// What it speaks.
        kind: Kind,
        /// On which port of every address.
        port: u16,
    },
    /// Opens an admission webhook (HTTPS). Answer: nothing.
    Admit {
        /// On which port of every address.
        port: u16,
        /// Its certificate, PEM.
        certificate: String,
        /// The certificate's key, PEM.
        key: String,
    },
    /// What the servers have noted. Answer: `Vec<Record>`.
    Records,
    /// Forgets it. Answer: nothing.
    ClearRecords,
    /// One question. Answer: [`Answer`].
    Ask(Ask),
    /// Addresses of a name, by the resolver of the pod. Answer: `Vec<IpAddr>`, in the resolver's order.
    Resolve {
        /// The name.
        name: String,
    },
    /// Opens a connection (or UDP socket) and keeps it. Answer: [`Opened`].
    Open(Ask),
    /// One round trip on a kept connection. Answer: [`Answer`].
    Ping {
        /// The number from [`Opened`].
        id: u64,
        /// Another destination; for an unconnected UDP socket.
        target: Option<SocketAddr>,
    },
    /// Half-closes a kept TCP connection and reads what still comes. Answer: the text.
    Finish {
        /// The number from [`Opened`].
        id: u64,
    },
    /// Closes a kept connection. Answer: nothing.
    Close {
        /// The number from [`Opened`].
        id: u64,
    },
    /// Round trips on a kept connection from now on. Answer: nothing.
    Beat {
        /// The number from [`Opened`].
        id: u64,
        /// Milliseconds between them.
        every: u64,
    },
    /// Ends that. Answer: [`Beats`].
    BeatStop {
        /// The number from [`Opened`].
        id: u64,
    },
    /// Opens many connections, and makes round trips on all of them from now on. Answer: their number.
    HoldStart(Hold),
    /// Closes them. Answer: [`HoldReport`].
    HoldStop {
        /// The number.
        id: u64,
    },
    /// Tries until a change is there. Answer: [`Followed`].
    Follow(Follow),
    /// New connections at a steady rate from now on. Answer: the load's number.
    LoadStart(Load),
    /// How it goes. Answer: [`LoadReport`].
    LoadReport {
        /// The number.
        id: u64,
    },
    /// Ends it, after the connections begun. Answer: [`LoadReport`].
    LoadStop {
        /// The number.
        id: u64,
    },
}

/// How to ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    /// What to speak: it decides the protocol.
    pub kind: Kind,
    /// Whom to ask.
    pub target: SocketAddr,
    /// The client's own address and port; port 0 leaves the port open.
    pub bind: Option<SocketAddr>,
    /// An IPv4 target through an IPv6 socket (::ffff:a.b.c.d).
    pub mapped: bool,
    /// How the connection is opened.
    pub how: How,
    /// Milliseconds before silence counts as [`Outcome::Dropped`].
    pub patience: u64,
    /// Bytes to send and expect back (TCP, UDP); for HTTP its path.
    pub say: String,
}

impl Ask {
    /// An ordinary question: a blocking connect, three seconds of patience.
    pub fn new(kind: Kind, target: SocketAddr) -> Self {
        let say = if kind == Kind::Http { "/" } else { "" };
        Self { kind, target, bind: None, mapped: false, how: How::Plain, patience: 3000, say: say.to_owned() }
    }
}

/// How a socket reaches its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// connect(2) that blocks; UDP: connected.
    Plain,
    /// connect(2) on a non-blocking socket, then poll.
    Nonblocking,
    /// TCP: data on the SYN (MSG_FASTOPEN). `say` must not be empty.
    FastOpen,
    /// UDP: sendto, without connect.
    Unconnected,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    /// A server answered.
    Served,
    /// ECONNREFUSED: RST to the SYN, or ICMP port unreachable.
    Refused,
    /// ECONNRESET or EPIPE after the connection stood.
    Reset,
    /// The peer closed before it said anything.
    Closed,
    /// Silence.
    Dropped,
    /// An HTTP status other than 200.
    Status(u16),
    /// Any other error.
    Failed(String),
}

/// The full answer to a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What became of it.
    pub outcome: Outcome,
    /// Name of the server that answered.
    pub server: Option<String>,
    /// The client as the server saw it.
    pub client: Option<SocketAddr>,
    /// The socket's own name.
    pub local: Option<SocketAddr>,
    /// getpeername of a connected socket, or the source of the reply datagram.
    pub peer: Option<SocketAddr>,
    /// Milliseconds it all took.
    pub millis: f64,
}

/// A kept connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// Its number.
    pub id: u64,
    /// How its first question went.
    pub answer: Answer,
}

/// Round trips on a kept connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Beats {
    /// How many came back.
    pub rounds: u64,
    /// What ended them early.
    pub failure: Option<String>,
    /// The slowest, in milliseconds.
    pub longest: f64,
}

/// Connections that are kept together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hold {
    /// What each asks at first.
    pub ask: Ask,
    /// How many.
    pub count: u32,
    /// Milliseconds between two round trips of one of them.
    pub every: u64,
}

/// What became of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HoldReport {
    /// How many were opened.
    pub held: u32,
    /// Round trips that came back, of all of them.
    pub rounds: u64,
    /// What ended each that did not last, and when.
    pub failures: Vec<String>,
    /// The slowest round trip, in milliseconds.
    pub longest: f64,
}

/// A change to wait for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Follow {
    /// What each connection asks.
    pub ask: Ask,
    /// Whether somebody is to answer from now on, or nobody.
    pub reached: bool,
    /// Microseconds between two tries.
    pub gap: u64,
    /// Milliseconds until it is given up.
    pub within: u64,
}

/// A change that was followed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Followed {
    /// When it first showed, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// Connections until then.
    pub tries: u64,
}

/// A steady stream of new connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// What each asks.
    pub ask: Ask,
    /// How many a second.
    pub rate: u32,
}

/// What a load has met so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Connections begun and finished.
    pub asked: u64,
    /// Of these, by outcome; the key is [`Outcome`] in words.
    pub outcomes: BTreeMap<String, u64>,
    /// The slowest that was served, in milliseconds from the moment it was due.
    pub longest: f64,
    /// When the slowest was due, in nanoseconds of the monotonic clock.
    pub longest_at: u64,
    /// How many took a second or more from their own beginning: the time after which a SYN is sent again (RFC 6298).
    pub resent: u64,
    /// By server.
    pub servers: BTreeMap<String, Span>,
    /// The first failures, in words.
    pub failures: Vec<String>,
}

impl LoadReport {
    /// How many were not served.
    pub fn failed(&self) -> u64 {
        self.asked - self.outcomes.get("Served").copied().unwrap_or(0)
    }
}

/// The connections that one server got. Times are when connections were begun, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// How many.
    pub count: u64,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// What one server has noted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it speaks.
    pub kind: Kind,
    /// Where.
    pub port: u16,
    /// How often each address asked: connections, requests (HTTP) or datagrams (UDP).
    pub peers: BTreeMap<IpAddr, u64>,
}
