//! Waiting for a condition, with a deadline that says what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks at a condition: short against what is waited for (a watch event, a process' start), long enough that
/// the looking itself doesn't load two cores.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Tries `attempt` until it succeeds, and returns what it found and how long that took.
/// After `deadline` the last attempt's own error is returned, with `what` in front.
pub fn until<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("{what}: not within {deadline:?}"));
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Looks at a condition for all of `span` and fails as soon as it doesn't hold.
pub fn holds_for(what: &str, span: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(error) = check() {
            bail!("{what}: held for {:?} only: {error:#}", start.elapsed());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
