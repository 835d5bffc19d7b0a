//! Pauses between tries: doubling, with jitter, so that replicas don't come back in step.

use std::time::Duration;

/// The first pause, before jitter.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause, before jitter. Short, because an API server that is back should be noticed soon, and one replica's
/// seven clients are no load.
const LONGEST: Duration = Duration::from_secs(4);

/// Pauses that grow from try to try.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The pause before the next try: half to one and a half of the doubled time, by `random` in 0..1.
    fn pause(&mut self, random: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.tries.min(10)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        doubled.mul_f64(0.5 + random.clamp(0.0, 1.0))
    }

    /// Waits before the next try.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.pause(rand::random())).await;
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    /// How many tries have failed since the last success.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_scatter() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..8).map(|_| backoff.pause(0.5).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 4000, 4000]);
        backoff.reset();
        assert_eq!(backoff.pause(0.0).as_millis(), 50);
        assert_eq!(backoff.pause(1.0).as_millis(), 300);
        (0..100).for_each(|_| assert!(backoff.pause(0.1) < LONGEST));
        assert!(backoff.pause(1.0) <= LONGEST.mul_f64(1.5));
    }
}
