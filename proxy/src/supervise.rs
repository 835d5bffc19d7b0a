//! Background tasks: a panic is counted and logged, and the task is started again or the program ended, as declared.
//! Also the signal by which everything is told to stop.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::metrics::Metrics;

/// Pause before a task that panicked starts again: long enough not to fill the log, short enough not to be missed.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// How long a task that finishes in order may take for that once everything stops.
const FINISH: Duration = Duration::from_millis(500);

/// What a panic means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The task starts anew; its state is its own.
    Restart,
    /// The program can't go on without it and ends; what is in the kernel stays and the next process adopts it.
    Fatal,
}

/// Why the program should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It should not.
    No,
    /// A signal asked for it.
    Asked,
    /// A part that it can't do without failed.
    Failed,
}

/// Tells everything to stop. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown(watch::Sender<Stop>);

impl Shutdown {
    /// One that hasn't happened.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Stop::No))
    }

    /// Tells everything to stop; the first reason stands.
    pub(crate) fn stop(&self, why: Stop) {
        self.0.send_if_modified(|now| {
            let first = *now == Stop::No;
            if first {
                *now = why;
            }
            first
        });
    }

    /// Waits until everything is told to stop.
    pub(crate) async fn stopped(&self) -> Stop {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(|why| *why != Stop::No).await {
            Ok(why) => *why,
            Err(_) => Stop::Failed,
        }
    }

    /// Whether everything was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        *self.0.borrow() != Stop::No
    }
}

/// Starts tasks and watches over them.
#[derive(Clone)]
pub(crate) struct Supervisor {
    metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

impl Supervisor {
    /// One that counts into `metrics` and ends the program by `shutdown`.
    pub(crate) fn new(metrics: Metrics, shutdown: Shutdown) -> Self {
        Self { metrics, shutdown }
    }

    /// Runs what `make` makes until it ends or everything stops. After a panic, what `policy` says.
    pub(crate) fn spawn<F, T>(&self, name: &'static str, policy: Policy, make: F) -> JoinHandle<()>
    where
        F: FnMut() -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        self.spawn_with(name, policy, FINISH, make)
    }

    /// The same for a task that needs up to `finish` once everything stops. Who ends the program waits for the handle.
    pub(crate) fn spawn_with<F, T>(
        &self,
        name: &'static str,
        policy: Policy,
        finish: Duration,
        mut make: F,
    ) -> JoinHandle<()>
    where
        F: FnMut() -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        this.metrics.task_panics.with_label_values(&[name]); // from 0 on, so that the first panic is an increase
        tokio::spawn(async move {
            loop {
                let mut task = tokio::spawn(make());
                let ended = tokio::select! {
                    ended = &mut task => ended,
                    _ = this.shutdown.stopped() => {
                        // A task that wants to finish in order listens to the shutdown itself; give it its time.
                        if tokio::time::timeout(finish, &mut task).await.is_err() {
                            task.abort();
                        }
                        return;
                    }
                };
                let Err(error) = ended else { return };
                if !error.is_panic() || this.panicked(name, policy) == Policy::Fatal {
                    return;
                }
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        })
    }

    /// Runs a task that can't start again, because it owns what it was given. A panic ends the program.
    pub(crate) fn spawn_once(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let mut task = Some(task);
        self.spawn(name, Policy::Fatal, move || {
            let task = task.take();
            async move {
                if let Some(task) = task {
                    task.await;
                }
            }
        })
    }

    /// Runs `work` on a thread of its own. A panic there ends the program: a thread's state can't be trusted afterwards.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub(crate) fn thread<F>(&self, name: &'static str, work: F) -> std::io::Result<std::thread::JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        let this = self.clone();
        std::thread::Builder::new().name(format!("sheave-{name}")).spawn(move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                this.panicked(name, Policy::Fatal);
            }
        })
    }

    fn panicked(&self, name: &'static str, policy: Policy) -> Policy {
        self.metrics.task_panics.with_label_values(&[name]).inc();
        match policy {
            Policy::Restart => {
                tracing::error!(task = name, "a task panicked and starts again; please report the lines above")
            }
            Policy::Fatal => {
                tracing::error!(task = name, "a task panicked and the proxy ends; what is in the kernel stays");
                self.shutdown.stop(Stop::Failed);
            }
        }
        policy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn supervisor() -> Supervisor {
        Supervisor::new(Metrics::new().unwrap(), Shutdown::new())
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_counted_and_starts_again() {
        let supervisor = supervisor();
        let starts = Arc::new(AtomicUsize::new(0));
        let seen = starts.clone();
        let task = supervisor.spawn("test", Policy::Restart, move || {
            let seen = seen.clone();
            async move { assert!(seen.fetch_add(1, Ordering::SeqCst) >= 2, "too early") }
        });
        task.await.unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert_eq!(supervisor.metrics.task_panics.with_label_values(&["test"]).get(), 2);
        assert!(!supervisor.shutdown.is_stopped());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_finishes_in_order_gets_its_own_time_and_no_more() {
        for (finish, needs, finishes) in [(FINISH * 6, FINISH * 5, true), (FINISH, FINISH * 5, false)] {
            let (supervisor, finished) = (supervisor(), Arc::new(AtomicUsize::new(0)));
            let (shutdown, count) = (supervisor.shutdown.clone(), finished.clone());
            let task = supervisor.spawn_with("test", Policy::Restart, finish, move || {
                let (shutdown, count) = (shutdown.clone(), count.clone());
                async move {
                    shutdown.stopped().await;
                    tokio::time::sleep(needs).await;
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
            supervisor.shutdown.stop(Stop::Asked);
            task.await.unwrap();
            assert_eq!(finished.load(Ordering::SeqCst) == 1, finishes, "{finish:?}");
        }
    }

    #[tokio::test]
    async fn a_fatal_panic_stops_everything() {
        let supervisor = supervisor();
        let task = supervisor.spawn("test", Policy::Fatal, || async { panic!("as the test wants") });
        assert_eq!(supervisor.shutdown.stopped().await, Stop::Failed);
        task.await.unwrap();
        let other = self::supervisor();
        other.thread("test", || panic!("as the test wants")).unwrap().join().unwrap();
        assert_eq!(other.shutdown.stopped().await, Stop::Failed);
    }
}
