//! A TCP relay that a test can cut, close or freeze: the network trouble between two programs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

/// Carries connections from one address to another until told otherwise.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Both legs of every connection carried now, by its number.
    open: BTreeMap<u64, (TcpStream, TcpStream)>,
    /// New connections are closed at once.
    closed: bool,
    /// Bytes are read and held back.
    frozen: bool,
    /// Connections ever carried.
    carried: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    /// Listens at `address` (port 0: any) in this process' namespace and carries to `target`.
    pub fn start(address: SocketAddr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("relay at {address}"))?;
        let relay = Self { address: listener.local_addr()?, shared: Arc::default() };
        let own = Arc::clone(&relay.shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A target that doesn't answer closes the client's connection: what a dead program would do.
                let _ = own.carry(client, target);
            }
        });
        Ok(relay)
    }

    /// Ends every connection; new ones are carried.
    pub fn cut(&self) {
        for (client, server) in std::mem::take(&mut self.shared.lock().open).into_values() {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// Closed: ends every connection and takes no new one. Open again: as before.
    pub fn set_closed(&self, closed: bool) {
        self.shared.lock().closed = closed;
        if closed {
            self.cut();
        }
    }

    /// Frozen: connections stay, bytes don't move. Thawed: what was held back goes on.
    pub fn set_frozen(&self, frozen: bool) {
        self.shared.lock().frozen = frozen;
        self.shared.changed.notify_all();
    }

    /// Connections ever carried.
    pub fn carried(&self) -> u64 {
        self.shared.lock().carried
    }
}

impl Shared {
    fn carry(self: &Arc<Self>, client: TcpStream, target: SocketAddr) -> Result<()> {
        if self.lock().closed {
            return Ok(());
        }
        let server = TcpStream::connect(target)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let mut state = self.lock();
        state.carried += 1;
        let number = state.carried;
        state.open.insert(number, (client.try_clone()?, server.try_clone()?));
        drop(state);
        for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.copy(number, &from, &to));
        }
        Ok(())
    }

    fn copy(&self, number: u64, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut state = self.lock();
            while state.frozen {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
        self.lock().open.remove(&number);
    }
}
