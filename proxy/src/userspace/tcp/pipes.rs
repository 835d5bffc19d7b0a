//! Pipes for splicing, kept by each thread and lent to a connection only while bytes are in one.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use prometheus::IntGauge;

use crate::userspace::budget::{Budget, Share};
use crate::userspace::sys;

/// Bytes that a pipe may hold. 256 pages, the most that an unprivileged pipe gets (`fs.pipe-max-size`).
const SIZE: i32 = 1 << 20;

/// Descriptors of a pipe.
const DESCRIPTORS: u64 = 2;

/// Empty pipes that a thread keeps; more are closed when they come back.
const KEPT: usize = 16;

/// A thread's empty pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    empty: RefCell<Vec<Ends>>,
    lent: IntGauge,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
    _share: Share,
}

/// A pipe with what is in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
    pool: Rc<Pipes>,
}

impl Pipes {
    /// None yet; `lent` counts those that connections hold, `budget` bounds them.
    pub(crate) fn new(lent: IntGauge, budget: Arc<Budget>) -> Rc<Self> {
        Rc::new(Self { empty: RefCell::default(), lent, budget })
    }

    /// How many connections hold one.
    #[cfg(test)]
    pub(crate) fn lent(&self) -> i64 {
        self.lent.get()
    }

    /// Lends an empty pipe, where this process has descriptors left for one.
    pub(crate) fn lend(self: &Rc<Self>) -> Option<Pipe> {
        let kept = self.empty.borrow_mut().pop();
        let ends = kept.or_else(|| self.make())?;
        self.lent.inc();
        Some(Pipe { ends: Some(ends), held: 0, pool: self.clone() })
    }

    fn make(&self) -> Option<Ends> {
        let share = self.budget.take(DESCRIPTORS)?;
        let (reader, writer) = sys::pipe(SIZE).ok()?;
        Some(Ends { reader, writer, _share: share })
    }
}

impl Pipe {
    fn ends(&self) -> &Ends {
        self.ends.as_ref().expect("a pipe has its ends until it is dropped, because only drop takes them")
    }

    /// Bytes in it.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes what a socket has received. 0 is the end of the stream.
    ///
    /// # Errors
    /// As `sys::splice`.
    pub(crate) fn fill(&mut self, from: &impl std::os::fd::AsFd) -> io::Result<usize> {
        let moved = sys::splice(from, &self.ends().writer, SIZE as usize)?;
        self.held += moved;
        Ok(moved)
    }

    /// Gives what it holds to a socket.
    ///
    /// # Errors
    /// As `sys::splice`.
    pub(crate) fn drain(&mut self, to: &impl std::os::fd::AsFd) -> io::Result<usize> {
        let moved = sys::splice(&self.ends().reader, to, self.held)?;
        self.held -= moved;
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.pool.lent.dec();
        let mut empty = self.pool.empty.borrow_mut();
        // A pipe that still holds bytes of a broken connection must not be lent to another.
        if let Some(ends) = self.ends.take().filter(|_| self.held == 0 && empty.len() < KEPT) {
            empty.push(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_never_lent_again() {
        let pipes = Pipes::new(IntGauge::new("x", "x").unwrap(), Budget::of(2));
        let ((mut client, from), (to, mut server)) = (pair(), pair());
        client.write_all(b"left behind").unwrap();
        let mut pipe = pipes.lend().unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 11);
        assert_eq!(pipes.lent.get(), 1);
        drop(pipe);
        assert_eq!((pipes.lent.get(), pipes.empty.borrow().len()), (0, 0));

        let only = pipes.lend().expect("what the lost pipe took of the budget was given back");
        assert!(pipes.lend().is_none(), "the budget is for one");
        drop(only);

        client.write_all(b"carried").unwrap();
        let mut pipe = pipes.lend().unwrap();
        pipe.fill(&from).unwrap();
        assert_eq!(pipe.drain(&to).unwrap(), 7);
        assert_eq!(pipe.held(), 0);
        drop(pipe);
        assert_eq!(pipes.empty.borrow().len(), 1);
        drop(to);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "carried");
    }
}
