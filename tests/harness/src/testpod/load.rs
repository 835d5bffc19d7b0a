//! Open-loop load: connections become due at a steady rate whether or not earlier ones have finished, and each one's delay
//! counts from the moment it was due, so that a stall shows in full.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::protocol::{Answer, Ask, Load, LoadReport, Outcome};
use super::{client, udp};
use crate::sys::monotonic;

/// Connections that may be open at once: a stall of over a second at 500 a second.
const WORKERS: usize = 600;
/// A worker holds one connection and a few small buffers.
const STACK: usize = 160 * 1024;
/// How many failures are kept in words.
const FAILURES: usize = 20;

struct Running {
    ask: Ask,
    every: Duration,
    start: Duration,
    next: AtomicU64,
    stop: AtomicBool,
    report: Mutex<LoadReport>,
}

/// A load and its workers.
type Started = (Arc<Running>, Vec<JoinHandle<()>>);

/// All loads of this pod, by number.
#[derive(Default)]
pub(super) struct Loads {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Started>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Loads {
    pub(super) fn start(&self, load: &Load) -> Result<u64> {
        ensure!(load.rate > 0, "a load needs a rate");
        let running = Arc::new(Running {
            ask: load.ask.clone(),
            every: Duration::from_secs(1) / load.rate,
            start: monotonic(),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            report: Mutex::default(),
        });
        let worker = |_| {
            let running = Arc::clone(&running);
            Builder::new().stack_size(STACK).spawn(move || running.work())
        };
        let workers = WORKERS.min(load.rate as usize * 2);
        let threads = (0..workers).map(worker).collect::<Result<Vec<_>, _>>().context("load thread")?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.all).insert(id, (running, threads));
        Ok(id)
    }

    pub(super) fn report(&self, id: u64) -> Result<LoadReport> {
        let all = lock(&self.all);
        let (running, _) = all.get(&id).with_context(|| format!("no load {id}"))?;
        let report = lock(&running.report).clone();
        Ok(report)
    }

    pub(super) fn stop(&self, id: u64) -> Result<LoadReport> {
        let (running, threads) = lock(&self.all).remove(&id).with_context(|| format!("no load {id}"))?;
        running.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            let _ = thread.join(); // a worker that panicked has counted what it finished
        }
        let report = lock(&running.report).clone();
        Ok(report)
    }
}

impl Running {
    fn work(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let due = self.start + self.every * u32::try_from(number).unwrap_or(u32::MAX);
            let wait = due.saturating_sub(monotonic());
            std::thread::sleep(wait);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let begun = monotonic();
            let answer = if udp::is_udp(&self.ask) { udp::ask(&self.ask) } else { client::ask(&self.ask) };
            self.note(due, begun, &answer);
        }
    }

    fn note(&self, due: Duration, begun: Duration, answer: &Answer) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let begun = nanos(begun);
        let delay = (monotonic() - due).as_secs_f64() * 1000.0;
        let mut report = lock(&self.report);
        report.asked += 1;
        *report.outcomes.entry(format!("{:?}", answer.outcome)).or_default() += 1;
        if answer.outcome != Outcome::Served {
            if report.failures.len() < FAILURES {
                let at = (due - self.start).as_secs_f64();
                let peer = &answer.peer;
                report
                    .failures
                    .push(format!("{:?} at {at:.3} s after {:.1} ms, peer {peer:?}", answer.outcome, answer.millis));
            }
            return;
        }
        report.resent += u64::from(answer.millis >= 1000.0);
        if delay > report.longest {
            report.longest = delay;
            report.longest_at = nanos(due);
        }
        let span = report.servers.entry(answer.server.clone().unwrap_or_default()).or_default();
        span.first = if span.count == 0 { begun } else { span.first.min(begun) };
        span.last = span.last.max(begun);
        span.count += 1;
    }
}
