//! Which replica is next, and after which pause. Pure but for the jitter.

use std::time::Duration;

use super::stream::End;

/// First pause; doubled for each round in which no replica served.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause: an endpoint change made while controllers were away reaches a node within a few seconds of their return,
/// and thousands of nodes that try this often are no load for the machine that turns them away.
const LONGEST: Duration = Duration::from_secs(4);
/// A replica whose view is older than this is left for a fresher one, while there is one to try.
/// A replica hears from a quiet source once a minute (bookmarks), so that is no sign of trouble.
const OLD: Duration = Duration::from_secs(120);
/// Rounds in which replicas would have gone back in time, and none served, after which they are believed. A replica that
/// merely lags closes the stream by itself; one that serves older state has found that its source went back.
const BELIEVED: u32 = 3;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Index of the replica.
    pub(super) index: usize,
    /// How long to wait before.
    pub(super) pause: Duration,
    /// How old its view may be; nothing: as old as it is.
    pub(super) oldest: Option<Duration>,
    /// Whether its first series may be older than what was applied.
    pub(super) may_go_back: bool,
}

/// Goes round the replicas.
#[derive(Debug)]
pub(super) struct Rotation {
    next: usize,
    failures: u32,
    /// Ages of the views that were left for being old since a replica last served.
    ages: Vec<Option<Duration>>,
    /// Streams in a row that would have gone back in time.
    went_back: u32,
    fresh_start: bool,
    /// Whether the last one is only tried once all others were, in vain.
    last_resort: bool,
}

impl Rotation {
    /// Over `count` replicas, of which there is at least one; the last one may be the last resort.
    pub(super) fn new(count: usize, last_resort: bool) -> Self {
        let ages = vec![None; count.max(1)];
        Self { next: 0, failures: 0, ages, went_back: 0, fresh_start: true, last_resort: last_resort && count > 1 }
    }

    /// Takes the place of another one, since replicas have changed: the first pause is not left out once more, and what has
    /// been tried in vain for long isn't tried more often.
    pub(super) fn go_on_after(&mut self, before: &Self) {
        self.fresh_start = before.fresh_start;
        self.failures = before.failures.min(u32::try_from(self.ages.len()).unwrap_or(u32::MAX));
    }

    /// The next turn.
    pub(super) fn next(&mut self) -> Turn {
        let count = self.ages.len();
        let pause = if std::mem::take(&mut self.fresh_start) { Duration::ZERO } else { jitter(self.base()) };
        let replicas = u32::try_from(count).unwrap_or(u32::MAX);
        let may_go_back = self.went_back > 0 && self.failures >= replicas.saturating_mul(BELIEVED);
        let tried = usize::try_from(self.failures).unwrap_or(usize::MAX);
        if self.last_resort && self.next == count - 1 && tried + 1 < count {
            self.next = 0;
        }
        let best = self.ages.iter().enumerate().filter_map(|(index, age)| age.map(|age| (age, index))).min();
        // Once every replica was asked, the freshest of the old ones is better than none.
        match best {
            Some((_, index)) if tried >= count => Turn { index, pause, oldest: None, may_go_back },
            _ => Turn { index: self.next, pause, oldest: (count > 1).then_some(OLD), may_go_back },
        }
    }

    /// Takes note of how a stream ended.
    pub(super) fn ended(&mut self, index: usize, end: &End) {
        self.next = (index + 1) % self.ages.len();
        match end {
            End::AfterServing(_) => {
                self.failures = 0;
                self.went_back = 0;
                self.ages.fill(None);
            }
            End::Old(age) => {
                self.ages[index] = Some(*age);
                self.failures = self.failures.saturating_add(1);
            }
            End::Unreachable(_) | End::BeforeServing(_) | End::BackInTime => {
                self.went_back += u32::from(*end == End::BackInTime);
                self.ages[index] = None;
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// The first try at each replica comes quickly, since another one may well be up; then each round waits twice as long.
    fn base(&self) -> Duration {
        let rounds = self.failures / u32::try_from(self.ages.len()).unwrap_or(u32::MAX);
        FIRST.saturating_mul(1 << rounds.min(10)).min(LONGEST)
    }
}

/// Half to one and a half times as long, so that nodes that lost a replica together don't come back together.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> End {
        End::Unreachable("nobody there".to_owned())
    }

    #[test]
    fn replicas_are_tried_in_turn_with_growing_bounded_pauses() {
        let mut rotation = Rotation::new(3, false);
        assert_eq!(rotation.next().pause, Duration::ZERO);
        let mut longest = Duration::ZERO;
        for n in 0..60 {
            let turn = rotation.next();
            assert_eq!(turn.index, n % 3);
            assert!(turn.pause <= LONGEST.mul_f64(1.5));
            longest = longest.max(turn.pause);
            rotation.ended(turn.index, &failed());
        }
        assert!(longest >= LONGEST / 2);
        rotation.ended(0, &End::AfterServing("cut".to_owned()));
        assert!(rotation.next().pause <= FIRST.mul_f64(1.5));
    }

    #[test]
    fn of_old_views_the_freshest_serves_once_all_were_asked() {
        let mut rotation = Rotation::new(3, false);
        for (index, end) in
            [End::Old(Duration::from_secs(600)), End::Old(Duration::from_secs(200)), failed()].iter().enumerate()
        {
            let turn = rotation.next();
            assert_eq!((turn.index, turn.oldest), (index, Some(OLD)));
            rotation.ended(index, end);
        }
        let turn = rotation.next();
        assert_eq!((turn.index, turn.oldest), (1, None));
        rotation.ended(1, &failed());
        assert_eq!(rotation.next().index, 0, "the other old one is better than none");
    }

    #[test]
    fn replicas_that_go_back_are_believed_only_after_several_rounds() {
        let mut rotation = Rotation::new(2, false);
        for n in 0..6 {
            let turn = rotation.next();
            assert!(!turn.may_go_back, "turn {n}");
            let end = if n == 1 { End::BackInTime } else { failed() };
            rotation.ended(turn.index, &end);
        }
        assert!(rotation.next().may_go_back);
        rotation.ended(0, &End::AfterServing(String::new()));
        assert!(!rotation.next().may_go_back);
    }

    #[test]
    fn the_last_resort_waits_until_all_others_have_failed() {
        let mut rotation = Rotation::new(3, true);
        let mut turns = Vec::new();
        for end in [failed(), End::AfterServing(String::new()), failed(), failed(), failed(), failed()] {
            let turn = rotation.next();
            turns.push(turn.index);
            rotation.ended(turn.index, &end);
        }
        assert_eq!(turns, [0, 1, 0, 1, 2, 0]);
        assert_eq!(Rotation::new(1, true).next().index, 0, "where it is all there is, it is tried");
    }

    #[test]
    fn replicas_that_change_all_the_time_are_not_tried_without_pause() {
        let mut rotation = Rotation::new(2, false);
        rotation.next();
        for _ in 0..9 {
            rotation.ended(0, &failed());
            let mut next = Rotation::new(2, false);
            next.go_on_after(&rotation);
            assert!(!next.next().pause.is_zero());
            rotation = next;
        }
    }

    #[test]
    fn a_single_replica_may_be_as_old_as_it_is() {
        assert_eq!(Rotation::new(1, false).next().oldest, None);
    }
}
