//! One copy of each name that many endpoints carry: 10,000 endpoints lie on a few hundred nodes in a handful of zones, and
//! each name as it comes off the wire is an allocation of its own.

use std::collections::HashSet;
use std::sync::Arc;

/// Names in use, and a bounded number of those that no longer are.
#[derive(Debug)]
pub(crate) struct Names {
    known: HashSet<Arc<str>>,
    /// Names that nobody uses are forgotten when there are this many.
    sweep_at: usize,
}

/// The fewest names that are worth a sweep.
const FEW: usize = 256;

impl Default for Names {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: FEW }
    }
}

impl Names {
    /// Replaces a name by the copy that is known, or makes it the one.
    pub(crate) fn share(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.known.get(name) {
            *name = known.clone();
            return;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            // Twice as many as are in use: then a sweep costs each new name O(1).
            self.sweep_at = (self.known.len() * 2).max(FEW);
        }
        self.known.insert(name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_become_one_and_unused_ones_are_forgotten() {
        let mut names = Names::default();
        let mut kept: Vec<Arc<str>> = vec!["n1".into(), "n1".into(), "n2".into()];
        kept.iter_mut().for_each(|name| names.share(name));
        assert!(Arc::ptr_eq(&kept[0], &kept[1]));
        assert_eq!(names.known.len(), 2);
        for n in 0..FEW * 8 {
            names.share(&mut format!("gone-{n}").into());
        }
        assert!(names.known.len() <= FEW);
        let mut again: Arc<str> = "n2".into();
        names.share(&mut again);
        assert!(Arc::ptr_eq(&again, &kept[2]), "what is in use is never forgotten");
    }
}
