//! Connections that a test keeps open: single round trips when it asks, or a steady beat of them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::protocol::{Answer, Ask, Beats, Kind, Opened, Outcome};
use super::udp::Client;
use super::{client, udp};

enum Socket {
    /// Nothing: it could not be connected.
    None,
    Tcp(TcpStream),
    Udp(Client),
}

/// A kept socket; what it said at first is what later round trips are compared with.
pub(super) struct Kept {
    socket: Socket,
    ask: Ask,
    pub(super) first: Answer,
}

struct Beating {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Beats>,
}

/// All kept connections of this pod, by number.
#[derive(Default)]
pub(super) struct Held {
    next: AtomicU64,
    kept: Mutex<HashMap<u64, Arc<Kept>>>,
    beating: Mutex<HashMap<u64, Beating>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    pub(super) fn open(&self, ask: &Ask) -> Result<Opened> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let kept = Kept::open(ask)?;
        let answer = kept.first.clone();
        lock(&self.kept).insert(id, Arc::new(kept));
        Ok(Opened { id, answer })
    }

    fn get(&self, id: u64) -> Result<Arc<Kept>> {
        lock(&self.kept).get(&id).cloned().with_context(|| format!("no connection {id} is kept"))
    }

    pub(super) fn ping(&self, id: u64, target: Option<SocketAddr>) -> Result<Answer> {
        Ok(self.get(id)?.round(target))
    }

    pub(super) fn finish(&self, id: u64) -> Result<String> {
        let kept = self.get(id)?;
        let Socket::Tcp(stream) = &kept.socket else { return Err(anyhow!("only TCP can be half-closed")) };
        stream.shutdown(Shutdown::Write)?;
        let mut rest = String::new();
        (&mut &*stream).read_to_string(&mut rest)?;
        Ok(rest)
    }

    pub(super) fn close(&self, id: u64) {
        lock(&self.kept).remove(&id);
    }

    pub(super) fn beat(&self, id: u64, every: u64) -> Result<()> {
        let kept = self.get(id)?;
        let stop = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&stop);
        let thread = std::thread::spawn(move || kept.beat(&own, Duration::from_millis(every)));
        lock(&self.beating).insert(id, Beating { stop, thread });
        Ok(())
    }

    pub(super) fn beat_stop(&self, id: u64) -> Result<Beats> {
        let beating = lock(&self.beating).remove(&id).with_context(|| format!("connection {id} has no beat"))?;
        beating.stop.store(true, Ordering::Relaxed);
        beating.thread.join().map_err(|_| anyhow!("the beat's thread panicked"))
    }
}

impl Kept {
    /// Asks once; a TCP connection that does not come about is in the answer.
    pub(super) fn open(ask: &Ask) -> Result<Self> {
        let (socket, first) = if udp::is_udp(ask) {
            let client = Client::open(ask)?;
            let answer = client.ask(None);
            (Socket::Udp(client), answer)
        } else {
            match client::open(ask) {
                Ok((stream, mut answer)) => {
                    if let Err(error) = client::converse(&stream, ask, &mut answer) {
                        answer.outcome = client::outcome(&error);
                    }
                    (Socket::Tcp(stream), answer)
                }
                Err(error) => (Socket::None, client::blank(client::outcome(&error))),
            }
        };
        Ok(Self { socket, ask: ask.clone(), first })
    }

    /// One more round trip.
    pub(super) fn round(&self, target: Option<SocketAddr>) -> Answer {
        let stream = match &self.socket {
            Socket::None => return self.first.clone(),
            Socket::Udp(client) => return client.ask(target),
            Socket::Tcp(stream) => stream,
        };
        let start = Instant::now();
        let mut answer = self.first.clone();
        let round = if self.ask.kind == Kind::Http {
            client::converse(stream, &self.ask, &mut answer) // one more request, with an answer of its own
        } else {
            let (mut byte, mut both) = ([0], stream);
            both.write_all(b"x").and_then(|()| both.read_exact(&mut byte))
        };
        if let Err(error) = round {
            answer.outcome = client::outcome(&error);
        }
        answer.millis = start.elapsed().as_secs_f64() * 1000.0;
        answer
    }

    fn beat(&self, stop: &AtomicBool, every: Duration) -> Beats {
        let mut beats = Beats { rounds: 0, failure: None, longest: 0.0 };
        while !stop.load(Ordering::Relaxed) {
            let answer = self.round(None);
            if answer.outcome != Outcome::Served {
                beats.failure = Some(format!("{:?}", answer.outcome));
                break;
            }
            beats.rounds += 1;
            beats.longest = beats.longest.max(answer.millis);
            std::thread::sleep(every);
        }
        beats
    }
}
