//! Wishes for one more list of a kind, and their pace: a list costs the API server all of the kind, and while it lasts no change
//! of the kind is seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sheave_index::Kind;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Event;

/// Between the end of a list that was wished for and the next such list. A gate is as patient: whom it turns away meanwhile
/// comes again.
const PACE: Duration = Duration::from_secs(10);

/// Wishes per kind, and how many lists have begun.
#[derive(Debug)]
pub(crate) struct Relist {
    kinds: BTreeMap<Kind, Wishes>,
}

#[derive(Debug, Default)]
struct Wishes {
    wish: Notify,
    begun: AtomicU64,
    pace: Mutex<Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    /// A wish was granted, and the list has not ended yet.
    granted: bool,
    not_before: Option<Instant>,
}

impl Default for Relist {
    fn default() -> Self {
        Self { kinds: Kind::ALL.iter().map(|&kind| (kind, Wishes::default())).collect() }
    }
}

impl Relist {
    /// Asks for one more list of a kind.
    pub(crate) fn request(&self, kind: Kind) {
        self.of(kind).wish.notify_one();
    }

    /// How many lists of each kind have begun at the source so far. One with a higher number began after this call.
    pub(crate) fn begun(&self) -> BTreeMap<Kind, u64> {
        self.kinds.iter().map(|(&kind, wishes)| (kind, wishes.begun.load(Ordering::SeqCst))).collect()
    }

    /// Waits until a list of a kind is wished for and may begin. Wishes that come meanwhile count as one.
    pub(super) async fn wanted(&self, kind: Kind) {
        let wishes = self.of(kind);
        // The pause comes first: whoever waits here may be called away, and a wish that was taken before would be lost.
        let not_before = wishes.pace().not_before;
        if let Some(at) = not_before {
            sleep_until(at).await;
        }
        wishes.wish.notified().await;
        wishes.pace().granted = true;
    }

    /// Takes note of lists that begin and end.
    pub(super) fn note(&self, events: &[Event]) {
        for event in events {
            match event {
                Event::BeginResync(kind) => drop(self.of(*kind).begun.fetch_add(1, Ordering::SeqCst)),
                Event::EndResync(kind, _) => {
                    let mut pace = self.of(*kind).pace();
                    if std::mem::take(&mut pace.granted) {
                        pace.not_before = Some(Instant::now() + PACE);
                    }
                }
                _ => {}
            }
        }
    }

    /// Waits for a wish, for tests without a source.
    #[cfg(test)]
    pub(crate) async fn wanted_within(
        &self,
        kind: Kind,
        patience: Duration,
    ) -> Result<(), tokio::time::error::Elapsed> {
        tokio::time::timeout(patience, self.of(kind).wish.notified()).await
    }

    fn of(&self, kind: Kind) -> &Wishes {
        self.kinds.get(&kind).expect("every kind is in the map, because it is made from Kind::ALL")
    }
}

impl Wishes {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: [Event; 2] = [Event::BeginResync(Kind::Pod), Event::EndResync(Kind::Pod, 7)];

    /// How long it takes until a list of Pods may begin.
    async fn waited(relist: &Relist) -> Duration {
        let started = Instant::now();
        relist.wanted(Kind::Pod).await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn lists_that_are_wished_for_without_end_keep_their_pace() {
        let relist = Relist::default();
        relist.note(&LIST);
        relist.request(Kind::Pod);
        assert_eq!(waited(&relist).await, Duration::ZERO, "a list that nobody wished for holds nobody up");
        tokio::time::advance(Duration::from_secs(3)).await;
        relist.note(&LIST);
        for _ in 0..3 {
            (0..100).for_each(|_| relist.request(Kind::Pod));
            let waited = waited(&relist).await;
            assert!((PACE..PACE * 2).contains(&waited), "{waited:?} from the end of the last one");
            relist.note(&LIST);
        }
        relist.request(Kind::Node);
        relist.wanted(Kind::Node).await;
        assert_eq!(relist.begun()[&Kind::Pod], 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_outlasts_whoever_was_called_away_from_it() {
        let relist = Relist::default();
        relist.request(Kind::Pod);
        relist.wanted(Kind::Pod).await;
        relist.note(&LIST);
        relist.request(Kind::Pod);
        for _ in 0..3 {
            assert!(tokio::time::timeout(PACE / 5, relist.wanted(Kind::Pod)).await.is_err());
        }
        waited(&relist).await;
    }
}
