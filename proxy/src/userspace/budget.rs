//! How many descriptors connections and sessions may hold together: 90 % of this process's limit, so that the controller's
//! stream, the admin listeners and the logs always get theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Descriptors that may be taken, shared by all threads.
#[derive(Debug)]
pub(crate) struct Budget {
    taken: AtomicU64,
    most: u64,
}

/// Descriptors taken; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    count: u64,
}

impl Budget {
    /// Nine tenths of a process's limit.
    pub(crate) fn of_limit(limit: u64) -> Arc<Self> {
        Self::of(limit - limit / 10)
    }

    /// A number of anything.
    pub(crate) fn of(most: u64) -> Arc<Self> {
        Arc::new(Self { taken: AtomicU64::new(0), most })
    }

    /// Takes some, unless too few are left. All relaxed: the number orders nothing.
    pub(crate) fn take(self: &Arc<Self>, count: u64) -> Option<Share> {
        let before = self.taken.fetch_add(count, Ordering::Relaxed);
        let share = Share { budget: self.clone(), count };
        (before + count <= self.most).then_some(share)
    }

    /// How many may be taken in all.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_tenths_can_be_taken_and_given_back() {
        let budget = Budget::of_limit(20);
        let shares: Vec<_> = std::iter::from_fn(|| budget.take(2)).collect();
        assert_eq!(shares.len(), 9);
        drop(shares);
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
        assert!(budget.take(18).is_some());
        assert!(budget.take(19).is_none());
    }
}
