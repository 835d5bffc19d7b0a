//! Carries bytes both ways between two connected sockets until both directions have ended.
//!
//! A direction copies through the thread's buffer while little comes at a time, and splices through a pipe while the
//! buffer comes full, so that small messages cost two system calls and streams are not copied. An idle direction holds
//! neither buffer nor pipe.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::pipes::{Pipe, Pipes};
use crate::metrics::{Direction, PortCounters};

/// Bytes that are copied at a time. A read that fills it starts splicing.
const COPY: usize = 16 << 10;

/// A splice that moves less than this ends splicing.
const TRICKLE: usize = 4 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; COPY].into_boxed_slice());
}

/// Which socket an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    From,
    To,
}

/// One direction's progress.
#[derive(Debug)]
struct Flow {
    direction: Direction,
    splicing: bool,
    held: Held,
    state: State,
}

/// Bytes that were read and not yet written.
#[derive(Debug)]
enum Held {
    Nothing,
    Copied(Vec<u8>, usize),
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

/// Two connected sockets and what is under way between them.
#[derive(Debug)]
pub(crate) struct Relay {
    client: TcpStream,
    backend: TcpStream,
    inwards: Flow,
    outwards: Flow,
    pipes: Rc<Pipes>,
}

impl Relay {
    /// Between two sockets that are connected, or about to be.
    pub(crate) fn new(client: TcpStream, backend: TcpStream, pipes: Rc<Pipes>) -> Self {
        let flow = |direction| Flow { direction, splicing: false, held: Held::Nothing, state: State::Open };
        Self { client, backend, inwards: flow(Direction::In), outwards: flow(Direction::Out), pipes }
    }

    /// Runs until both directions have ended. An error of one socket resets the other, as without a proxy.
    ///
    /// # Errors
    /// What ended the connection before both sides had closed it.
    pub(crate) async fn run(mut self, counters: &PortCounters) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll(cx, counters)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, counters: &PortCounters) -> Poll<io::Result<()>> {
        let (client, backend, pipes) = (&mut self.client, &mut self.backend, &self.pipes);
        let other_open = self.outwards.state != State::Ended;
        let inwards = self.inwards.poll(cx, client, backend, pipes, counters, other_open);
        if let Poll::Ready(Err((side, error))) = inwards {
            reset(if side == Side::From { backend } else { client });
            return Poll::Ready(Err(error));
        }
        let other_open = self.inwards.state != State::Ended;
        let outwards = self.outwards.poll(cx, backend, client, pipes, counters, other_open);
        if let Poll::Ready(Err((side, error))) = outwards {
            reset(if side == Side::From { client } else { backend });
            return Poll::Ready(Err(error));
        }
        if inwards.is_ready() && outwards.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

/// Makes the close that follows a reset.
pub(crate) fn reset(stream: &TcpStream) {
    // Where it fails the socket is gone already, which is what is wanted.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

type Failure = (Side, io::Error);

impl Flow {
    /// Moves what can be moved. `tell` says whether the end is worth telling: when the other direction has ended too, both
    /// sockets are about to be closed.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        pipes: &Rc<Pipes>,
        counters: &PortCounters,
        tell: bool,
    ) -> Poll<Result<(), Failure>> {
        loop {
            if self.state == State::Ended {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_write(cx, to)).map_err(|e| (Side::To, e))?;
            if self.state == State::Ending {
                if tell {
                    SockRef::from(&*to).shutdown(std::net::Shutdown::Write).map_err(|e| (Side::To, e))?;
                }
                self.state = State::Ended;
                return Poll::Ready(Ok(()));
            }
            let count = if self.splicing {
                ready!(self.poll_splice(cx, from, pipes)).map_err(|e| (Side::From, e))?
            } else {
                ready!(self.poll_copy(cx, from, to))?
            };
            if count == 0 {
                self.state = State::Ending;
            }
            counters.bytes(self.direction, count as u64);
        }
    }

    /// Writes what is held.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        loop {
            match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Copied(bytes, at) => {
                    *at += ready!(Pin::new(&mut *to).poll_write(cx, &bytes[*at..]))?;
                    if *at == bytes.len() {
                        self.held = Held::Nothing;
                    }
                }
                Held::Piped(pipe) => {
                    if pipe.held() == 0 {
                        self.held = Held::Nothing;
                        continue;
                    }
                    ready!(to.poll_write_ready(cx))?;
                    match to.try_io(Interest::WRITABLE, || pipe.drain(&*to)) {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        other => drop(other?),
                    }
                }
            }
        }
    }

    /// Reads into the thread's buffer and writes at once what the other side takes; keeps the rest.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
    ) -> Poll<Result<usize, Failure>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(|e| (Side::From, e))?;
            let bytes = read.filled();
            self.splicing = bytes.len() == COPY;
            if bytes.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let written = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(result) => result.map_err(|e| (Side::To, e))?,
                Poll::Pending => 0,
            };
            if written < bytes.len() {
                self.held = Held::Copied(bytes[written..].to_vec(), 0);
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }

    fn poll_splice(&mut self, cx: &mut Context<'_>, from: &TcpStream, pipes: &Rc<Pipes>) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let Ok(mut pipe) = pipes.lend() else {
                self.splicing = false; // no descriptors left: copying needs none
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(count) => {
                    self.splicing = count >= TRICKLE;
                    self.held = Held::Piped(pipe);
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::IntGauge;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (one, listener.accept().await.unwrap().0)
    }

    /// A client and a backend with a relay between them.
    async fn relayed(pipes: &Rc<Pipes>) -> (TcpStream, TcpStream, impl Future<Output = (io::Result<()>, u64)> + use<>) {
        let ((client, near), (far, backend)) = (pair().await, pair().await);
        let relay = Relay::new(near, far, pipes.clone());
        let run = async move {
            let counters = PortCounters::default();
            let result = relay.run(&counters).await;
            (result, counters.bytes_total(Direction::In))
        };
        (client, backend, run)
    }

    fn pipes() -> Rc<Pipes> {
        Pipes::new(IntGauge::new("x", "x").unwrap())
    }

    #[tokio::test]
    async fn a_side_that_has_ended_still_receives() {
        let (mut client, mut backend, run) = relayed(&pipes()).await;
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut text = String::new();
            backend.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "question");
            backend.write_all(b"answer").await.unwrap();
            drop(backend);
            text.clear();
            client.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "answer");
        };
        let ((result, bytes), ()) = tokio::join!(run, talk);
        result.unwrap();
        assert_eq!(bytes, 8);
    }

    #[tokio::test]
    async fn ten_megabytes_arrive_unchanged_through_a_slow_reader() {
        let pipes = pipes();
        let (mut client, mut backend, run) = relayed(&pipes).await;
        let bytes: Vec<u8> = (0..10_usize << 20).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect();
        let sent = bytes.clone();
        let talk = async move {
            let write = async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
            };
            let read = async {
                let mut seen = Vec::new();
                let mut chunk = vec![0; 100_000];
                loop {
                    let count = backend.read(&mut chunk).await.unwrap();
                    if count == 0 {
                        return seen;
                    }
                    seen.extend_from_slice(&chunk[..count]);
                    if seen.len() % 7 == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            };
            let ((), seen) = tokio::join!(write, read);
            drop(backend);
            assert!(client.read_u8().await.is_err());
            seen
        };
        let ((result, count), seen) = tokio::join!(run, talk);
        result.unwrap();
        assert_eq!(count, 10 << 20);
        assert!(seen == bytes, "the stream was changed on its way");
    }

    #[tokio::test]
    async fn a_reset_is_passed_on() {
        let (client, mut backend, run) = relayed(&pipes()).await;
        reset(&client);
        drop(client);
        let ((result, _), seen) = tokio::join!(run, backend.read_u8());
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(seen.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn an_idle_connection_holds_no_pipe() {
        let pipes = pipes();
        let (mut client, mut backend, run) = relayed(&pipes).await;
        let talk = async {
            let bytes = vec![7; 1 << 20];
            let mut seen = vec![0; 1 << 20];
            let (write, read) = tokio::join!(client.write_all(&bytes), backend.read_exact(&mut seen));
            write.unwrap();
            read.unwrap();
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        tokio::select! { _ = run => panic!("ended"), () = talk => {} }
        assert_eq!(pipes.lent(), 0);
    }
}
