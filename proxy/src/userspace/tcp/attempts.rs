//! Which backend is tried next: another one each time, as long as one is left and 5 s are not over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::metrics::Reason;

/// For one try.
pub(crate) const TRY: Duration = Duration::from_secs(1);
/// For all tries.
const ALL: Duration = Duration::from_secs(5);

/// The tries of a connection whose first one failed.
#[derive(Debug)]
pub(crate) struct Attempts {
    end: Instant,
    /// Said no. Asking again within seconds changes nothing.
    refused: Vec<SocketAddr>,
    /// Said nothing in this round.
    silent: Vec<SocketAddr>,
}

impl Attempts {
    /// For a connection that was accepted at some time.
    pub(crate) fn since(began: Instant) -> Self {
        Self { end: began + ALL, refused: Vec::new(), silent: Vec::new() }
    }

    /// Notes that a backend was tried in vain.
    pub(crate) fn failed(&mut self, backend: SocketAddr, reason: Reason) {
        match reason {
            Reason::Timeout => self.silent.push(backend),
            _ => self.refused.push(backend),
        }
    }

    /// The next backend of those that take connections now. Those that were silent come again when all others have been
    /// tried, because a SYN may have been lost.
    pub(crate) fn next(&mut self, backends: &[SocketAddr], now: Instant, random: usize) -> Option<SocketAddr> {
        if now >= self.end {
            return None;
        }
        let left = |attempts: &Self| {
            let usable = |b: &&SocketAddr| !attempts.refused.contains(b) && !attempts.silent.contains(b);
            let usable: Vec<SocketAddr> = backends.iter().filter(usable).copied().collect();
            usable.get(random % usable.len().max(1)).copied()
        };
        left(self).or_else(|| {
            self.silent.clear();
            left(self)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backend(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    #[test]
    fn a_silent_backend_is_tried_again_and_one_that_refused_is_not() {
        let now = Instant::now();
        let mut attempts = Attempts::since(now);
        let both = [backend(1), backend(2)];
        attempts.failed(backend(1), Reason::Refused);
        assert_eq!(attempts.next(&both, now, 0), Some(backend(2)));
        attempts.failed(backend(2), Reason::Timeout);
        assert_eq!(attempts.next(&both, now, 0), Some(backend(2)));
        attempts.failed(backend(2), Reason::Unreachable);
        assert_eq!(attempts.next(&both, now, 0), None);
        assert_eq!(attempts.next(&[backend(1), backend(3)], now, 9), Some(backend(3)), "one that came meanwhile");
    }

    #[test]
    fn after_five_seconds_nobody_is_tried() {
        let now = Instant::now();
        let mut attempts = Attempts::since(now);
        attempts.failed(backend(1), Reason::Timeout);
        assert_eq!(attempts.next(&[backend(1)], now + ALL - TRY, 0), Some(backend(1)));
        assert_eq!(attempts.next(&[backend(1)], now + ALL, 0), None);
    }

    proptest! {
        /// Each backend comes once before any comes twice, and none that refused comes again.
        #[test]
        fn rounds_are_fair(fates in prop::collection::vec((any::<bool>(), any::<usize>()), 1..40), count in 1_u16..6) {
            let now = Instant::now();
            let backends: Vec<_> = (0..count).map(backend).collect();
            let mut attempts = Attempts::since(now);
            let (mut refused, mut round) = (Vec::new(), Vec::new());
            for (refuses, random) in fates {
                let Some(next) = attempts.next(&backends, now, random) else {
                    prop_assert_eq!(refused.len(), backends.len());
                    return Ok(());
                };
                prop_assert!(!refused.contains(&next));
                if round.contains(&next) {
                    prop_assert!(backends.iter().all(|b| round.contains(b) || refused.contains(b)));
                    round.clear();
                }
                if refuses { refused.push(next) } else { round.push(next) }
                attempts.failed(next, if refuses { Reason::Refused } else { Reason::Timeout });
            }
        }
    }
}
