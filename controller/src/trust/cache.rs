//! What token reviews said, for as long as that holds. Pure: times are arguments.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::review::Refused;

/// A node's name, or why there is none.
pub(super) type Verdict = Result<Arc<str>, String>;

/// A digest of a token.
type Key = [u8; 32];

/// An acceptance holds until the token expires, but not for longer than this: a deleted pod's token is then found out.
const ACCEPTED: Duration = Duration::from_secs(600);

/// A refusal holds this long: a node whose token was just renewed must not wait, a node that tries on and on costs little.
const REFUSED: Duration = Duration::from_secs(10);

/// While the API server is away, what it accepted within this time holds, expired or not: kubelets can't get new tokens then.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Acceptances that are kept: all nodes of a large cluster, and their next tokens.
const MOST_ACCEPTED: usize = 20_000;

/// Refusals that are kept. Apart from the others, so that nobody can displace those.
const MOST_REFUSED: usize = 1_000;

#[derive(Debug)]
struct Entry<T> {
    what: T,
    /// Seconds since 1970.
    expires: u64,
    asked: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Cache {
    accepted: HashMap<Key, Entry<Arc<str>>>,
    refused: HashMap<Key, Entry<String>>,
}

impl Cache {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.accepted.len() + self.refused.len()
    }

    /// What was said, where that needn't be asked again at `now`, which is `wall` in seconds since 1970.
    pub(super) fn fresh(&self, key: &Key, now: Instant, wall: u64) -> Option<Result<Arc<str>, Refused>> {
        let within = |asked: Instant, time| now.saturating_duration_since(asked) < time;
        if let Some(entry) =
            self.accepted.get(key).filter(|entry| within(entry.asked, ACCEPTED) && wall < entry.expires)
        {
            return Some(Ok(entry.what.clone()));
        }
        let refused = self.refused.get(key).filter(|entry| within(entry.asked, REFUSED));
        refused.map(|entry| Err(Refused::Token(entry.what.clone())))
    }

    /// What was accepted, where nobody can be asked.
    pub(super) fn kept(&self, key: &Key, now: Instant) -> Option<Arc<str>> {
        let entry = self.accepted.get(key)?;
        (now.saturating_duration_since(entry.asked) < KEPT).then(|| entry.what.clone())
    }

    /// Remembers what was said now about a token that expires then (none: it doesn't say).
    pub(super) fn insert(&mut self, key: Key, verdict: &Result<Arc<str>, Refused>, expires: Option<u64>, now: Instant) {
        match verdict {
            Ok(node) => {
                self.refused.remove(&key);
                let entry = Entry { what: node.clone(), expires: expires.unwrap_or(u64::MAX), asked: now };
                put(&mut self.accepted, key, entry, MOST_ACCEPTED, KEPT);
            }
            Err(reason) => {
                self.accepted.remove(&key);
                let entry = Entry { what: reason.to_string(), expires: 0, asked: now };
                put(&mut self.refused, key, entry, MOST_REFUSED, REFUSED);
            }
        }
    }
}

/// Adds an entry; where there is no room, what has had its time goes, and if that is not enough the older half.
fn put<T>(map: &mut HashMap<Key, Entry<T>>, key: Key, entry: Entry<T>, most: usize, time: Duration) {
    if map.len() >= most && !map.contains_key(&key) {
        let now = entry.asked;
        map.retain(|_, old| now.saturating_duration_since(old.asked) < time);
        if map.len() >= most {
            let mut times: Vec<Instant> = map.values().map(|old| old.asked).collect();
            let (_, middle, _) = times.select_nth_unstable(most / 2);
            let middle = *middle;
            map.retain(|_, old| old.asked > middle);
        }
    }
    map.insert(key, entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        let mut key = Key::default();
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn node(name: &str) -> Result<Arc<str>, Refused> {
        Ok(name.into())
    }

    #[test]
    fn an_acceptance_holds_until_the_token_expires_or_ten_minutes() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.insert(key(1), &node("a"), Some(100), start);
        cache.insert(key(2), &node("b"), None, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.fresh(&key(1), at(9), 99), Some(node("a")));
        assert_eq!(cache.fresh(&key(1), at(9), 100), None);
        assert_eq!(cache.fresh(&key(2), at(599), 0), Some(node("b")));
        assert_eq!(cache.fresh(&key(2), at(600), 0), None);
        assert_eq!(cache.kept(&key(1), at(86_399)), Some("a".into()), "expired, and nobody can say");
        assert_eq!(cache.kept(&key(1), at(86_400)), None);
    }

    #[test]
    fn a_refusal_is_short_and_takes_an_acceptance_away() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let refused = Err(Refused::Token("no".to_owned()));
        cache.insert(key(1), &node("a"), None, start);
        cache.insert(key(1), &refused, None, start);
        assert_eq!(cache.fresh(&key(1), start, 0), Some(refused));
        assert_eq!(cache.fresh(&key(1), start + REFUSED, 0), None);
        assert_eq!(cache.kept(&key(1), start), None);
    }

    #[test]
    fn there_is_a_bound_and_refusals_displace_no_acceptance() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.insert(key(0), &node("first"), None, start);
        for number in 1..MOST_REFUSED * 3 {
            let asked = start + Duration::from_millis(number as u64);
            cache.insert(key(number), &Err(Refused::Token("no".to_owned())), None, asked);
        }
        assert!(cache.len() <= MOST_REFUSED + 1, "{}", cache.len());
        assert_eq!(cache.fresh(&key(0), start, 0), Some(node("first")));
        for number in 1..MOST_ACCEPTED * 2 {
            let asked = start + Duration::from_millis(number as u64);
            cache.insert(key(number), &node("n"), None, asked);
        }
        assert!(cache.accepted.len() <= MOST_ACCEPTED, "{}", cache.accepted.len());
        let newest = start + Duration::from_millis(MOST_ACCEPTED as u64 * 2);
        assert_eq!(cache.fresh(&key(MOST_ACCEPTED * 2 - 1), newest, 0), Some(node("n")));
    }
}
