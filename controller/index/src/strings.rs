//! Equal strings share their memory: namespaces, labels, node names and zones repeat in thousands of objects.

use std::collections::HashSet;
use std::sync::Arc;

/// Below this many strings a sweep is not worth its time.
const SWEEP_FROM: usize = 1024;

/// A set of shared strings. It drops those nobody else holds each time it has doubled, so it stays within twice what lives.
#[derive(Debug)]
pub struct Strings {
    set: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Default for Strings {
    fn default() -> Self {
        Self { set: HashSet::new(), sweep_at: SWEEP_FROM }
    }
}

impl Strings {
    /// The shared copy of a string.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.set.get(text) {
            return known.clone();
        }
        if self.set.len() >= self.sweep_at {
            self.set.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (self.set.len() * 2).max(SWEEP_FROM);
        }
        let new: Arc<str> = text.into();
        self.set.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_memory_and_dropped_ones_are_forgotten() {
        let mut strings = Strings::default();
        let kept = strings.get("zone-a");
        assert!(Arc::ptr_eq(&kept, &strings.get("zone-a")));
        for n in 0..10 * SWEEP_FROM {
            strings.get(&format!("pod-{n}"));
        }
        assert!(strings.set.len() <= SWEEP_FROM + 1, "{} strings that nobody holds", strings.set.len());
        assert!(Arc::ptr_eq(&kept, &strings.get("zone-a")));
    }
}
