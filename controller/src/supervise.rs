//! Background tasks that are watched: a panic is counted and logged, then the task starts again or the program ends.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tracing::error;

use crate::metrics::Metrics;

/// Before a failed task starts again.
const PAUSE: Duration = Duration::from_millis(500);

/// The background tasks of the program. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    metrics: Arc<Metrics>,
}

impl Tasks {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { set: JoinSet::new(), metrics }
    }

    /// A task whose end is the program's end: state that others rely on lives in it.
    pub(crate) fn fatal(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let metrics = self.metrics.clone();
        self.set.spawn(async move {
            let result = watched(name, &metrics, task).await;
            Err(result.err().unwrap_or_else(|| anyhow::anyhow!("it ended")).context(format!("task {name}")))
        });
    }

    /// A task that starts again after an error or a panic, and may end well.
    pub(crate) fn restarting<F>(&mut self, name: &'static str, mut task: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let metrics = self.metrics.clone();
        self.set.spawn(async move {
            while let Err(error) = watched(name, &metrics, task()).await {
                error!(task = name, error = format!("{error:#}"), "the task failed and starts again");
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        });
    }

    /// Waits for a fatal task's end, and returns why it ended.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.set.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return error.into(),
                None => std::future::pending::<()>().await,
            }
        }
    }
}

/// Runs a task so that its panic becomes an error, and is counted.
async fn watched(
    name: &'static str,
    metrics: &Metrics,
    task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    metrics.task_panics.with_label_values(&[name]); // from 0 on, so that the first panic is an increase
    let mut alone = JoinSet::new(); // ends the task when the supervisor is dropped
    alone.spawn(task);
    match alone.join_next().await {
        Some(Err(error)) if error.is_panic() => {
            metrics.task_panics.with_label_values(&[name]).inc();
            Err(anyhow::anyhow!("it panicked: {}", panic_text(error)))
        }
        Some(Err(error)) => Err(error.into()),
        Some(Ok(result)) => result,
        None => Ok(()),
    }
}

fn panic_text(error: JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else { return "unknown".into() };
    if let Some(text) = payload.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_the_task_starts_again() {
        let metrics = Arc::new(Metrics::new());
        let mut tasks = Tasks::new(metrics.clone());
        let runs = Arc::new(AtomicU32::new(0));
        let (done, finished) = tokio::sync::oneshot::channel();
        let mut done = Some(done);
        let counter = runs.clone();
        tasks.restarting("shaky", move || {
            let run = counter.fetch_add(1, Ordering::SeqCst);
            let done = if run == 2 { done.take() } else { None };
            async move {
                assert!(run != 0, "the first run panics");
                anyhow::ensure!(run != 1, "the second fails");
                done.map(|done| done.send(()));
                Ok(())
            }
        });
        finished.await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        assert_eq!(metrics.task_panics.with_label_values(&["shaky"]).get(), 1);
    }

    #[tokio::test]
    async fn the_end_of_a_fatal_task_is_reported_with_its_name() {
        let mut tasks = Tasks::new(Arc::new(Metrics::new()));
        tasks.fatal("heart", async { panic!("broken") });
        let error = format!("{:#}", tasks.failed().await);
        assert!(error.contains("heart") && error.contains("broken"), "{error}");
    }
}
