//! Many kept connections at one steady beat, all of them by one thread: what a client holds while something else changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::held::Kept;
use super::protocol::{Hold, HoldReport, Outcome};
use crate::sys::monotonic;

struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<HoldReport>,
}

/// All such groups of this pod, by number.
#[derive(Default)]
pub(super) struct Holds {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Running>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holds {
    /// Opens every connection, and keeps them from now on.
    pub(super) fn start(&self, hold: &Hold) -> Result<u64> {
        ensure!(hold.count > 0 && hold.every > 0, "so many connections, so many milliseconds: at least 1 each");
        let open = |number| {
            Kept::open(&hold.ask)
                .and_then(|kept| match &kept.first.outcome {
                    Outcome::Served => Ok(kept),
                    other => Err(anyhow!("{other:?}")),
                })
                .with_context(|| format!("connection {number} of {} to {}", hold.count, hold.ask.target))
        };
        let kept = (1..=hold.count).map(open).collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (own, every) = (Arc::clone(&stop), Duration::from_millis(hold.every));
        let thread = std::thread::spawn(move || beat(kept, &own, every));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.all).insert(id, Running { stop, thread });
        Ok(id)
    }

    /// Closes them.
    pub(super) fn stop(&self, id: u64) -> Result<HoldReport> {
        let running = lock(&self.all).remove(&id).with_context(|| format!("no connections {id} are held"))?;
        running.stop.store(true, Ordering::Relaxed);
        running.thread.join().map_err(|_| anyhow!("the thread of connections {id} panicked"))
    }
}

/// One round trip after the other, so that each connection gets one every so often. One that fails is out.
fn beat(kept: Vec<Kept>, stop: &AtomicBool, every: Duration) -> HoldReport {
    let mut report = HoldReport { held: u32::try_from(kept.len()).unwrap_or(u32::MAX), ..HoldReport::default() };
    let gap = every / report.held;
    let (start, mut turn) = (monotonic(), 0);
    let mut kept: Vec<_> = kept.into_iter().map(Some).collect();
    'all: loop {
        for slot in &mut kept {
            let due = start + gap * turn;
            turn += 1;
            std::thread::sleep(due.saturating_sub(monotonic()));
            if stop.load(Ordering::Relaxed) {
                break 'all;
            }
            let Some(connection) = slot else { continue };
            let answer = connection.round(None);
            if answer.outcome == Outcome::Served {
                report.rounds += 1;
                report.longest = report.longest.max(answer.millis);
            } else {
                report.failures.push(format!("{:?} at {:.3} s", answer.outcome, (monotonic() - start).as_secs_f64()));
                *slot = None;
            }
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use super::super::protocol::{Ask, Kind};
    use super::*;

    #[test]
    fn all_are_kept_at_a_beat_and_one_that_breaks_is_reported() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                std::thread::spawn(move || {
                    let (mut stream, mut byte) = (stream.unwrap(), [0]);
                    writeln!(stream, "here|127.0.0.1:1").unwrap();
                    for round in 0.. {
                        if stream.read_exact(&mut byte).is_err() || (number == 2 && round == 3) {
                            return;
                        }
                        stream.write_all(&byte).unwrap();
                    }
                });
            }
        });
        let holds = Holds::default();
        let id = holds.start(&Hold { ask: Ask::new(Kind::Tcp, target), count: 5, every: 20 }).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        let report = holds.stop(id).unwrap();
        assert_eq!((report.held, report.failures.len()), (5, 1), "{report:?}");
        assert!((60..=90).contains(&report.rounds), "four connections, every 20 ms for 400 ms: {report:?}");
        assert!(holds.stop(id).is_err());
    }
}
