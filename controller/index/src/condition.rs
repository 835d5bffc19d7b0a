//! What is wrong with an object: which field, why, and how to mend it; and the book that keeps all of them.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Kind, ObjectKey};

/// New conditions kept for [`crate::Index::take_new_conditions`]; beyond it they show in `conditions()` only.
const NEWS: usize = 4096;

/// Something about an object that cannot be served as it is written. Everything else of the object is served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// The object.
    pub object: ObjectKey,
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with its value, which it quotes.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}; {}", self.object, self.field, self.message, self.remedy)
    }
}

/// Where a set of conditions of one object comes from. Each is replaced as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The object alone, found when it was read.
    Object,
    /// How much a Service's selector matches.
    Selector,
    /// A frontend that another Service keeps.
    Claim,
    /// Endpoints of a Service beyond the most that are served.
    Endpoints,
    /// A Node that pods name and that does not exist.
    MissingNode,
}

impl Origin {
    /// Whether something that was written is left out until somebody mends it. A wide selector is served as it is, and a Pod
    /// whose Node went first, as at every scale-down, soon follows it.
    fn leaves_out(self) -> bool {
        match self {
            Self::Object | Self::Claim | Self::Endpoints => true,
            Self::Selector | Self::MissingNode => false,
        }
    }
}

/// Every condition that holds now, and those that are new.
#[derive(Debug, Default)]
pub(crate) struct Book {
    all: BTreeMap<(ObjectKey, Origin), Vec<Condition>>,
    news: Vec<Condition>,
    /// How many of a kind's conditions leave something out.
    left_out: BTreeMap<Kind, usize>,
}

impl Book {
    /// Replaces an object's conditions of one origin; those it did not have are news.
    pub(crate) fn set(&mut self, object: &ObjectKey, origin: Origin, conditions: Vec<Condition>) {
        if conditions.is_empty() && self.all.is_empty() {
            return;
        }
        let slot = (object.clone(), origin);
        let old =
            if conditions.is_empty() { self.all.remove(&slot) } else { self.all.insert(slot, conditions.clone()) };
        let old = old.unwrap_or_default();
        if origin.leaves_out() {
            let count = self.left_out.entry(object.kind).or_default();
            *count = (*count + conditions.len()).saturating_sub(old.len());
        }
        let room = NEWS.saturating_sub(self.news.len());
        self.news.extend(conditions.into_iter().filter(|c| !old.contains(c)).take(room));
    }

    /// Forgets an object that is gone.
    pub(crate) fn clear(&mut self, object: &ObjectKey) {
        for origin in [Origin::Object, Origin::Selector, Origin::Claim, Origin::Endpoints] {
            self.set(object, origin, Vec::new());
        }
    }

    pub(crate) fn left_out(&self, kind: Kind) -> usize {
        self.left_out.get(&kind).copied().unwrap_or_default()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Condition> {
        self.all.values().flatten()
    }

    pub(crate) fn of(&self, object: &ObjectKey) -> impl Iterator<Item = &Condition> {
        self.all
            .range((object.clone(), Origin::Object)..=(object.clone(), Origin::MissingNode))
            .flat_map(|(_, list)| list)
    }

    pub(crate) fn take_news(&mut self) -> Vec<Condition> {
        std::mem::take(&mut self.news)
    }
}
