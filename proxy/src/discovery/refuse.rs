//! What an Update may not do, whoever sends it: be older than what is known, bring another node's facts, or remove
//! anything before all of a controller's state has come.

use sheave_api::{Decoded, name_of_key, proto};
use sheave_model::{Resource, ResourceKey, View};

/// Whether an Update would go back in time: same source, and some kind in it is older than what was applied. A kind that
/// the controller doesn't watch (any more) has no part in what it computes.
pub(super) fn goes_back(update: &View, mine: &View) -> bool {
    let older = |(kind, version): (&String, &u64)| update.versions.get(kind).is_some_and(|theirs| theirs < version);
    update.source == mine.source && mine.versions.iter().any(older)
}

/// Takes out facts of other nodes, which no controller should send; returns what to answer for them.
pub(super) fn foreign_nodes(decoded: &mut Decoded, node: &str) -> Vec<proto::Nack> {
    let mut nacks = Vec::new();
    decoded.delta.upserts.retain(|upsert| match &upsert.resource {
        Resource::Node(facts) if &*facts.name != node => {
            let name = name_of_key(&ResourceKey::Node(facts.name.clone()));
            nacks.push(proto::Nack { name: Some(name), reason: format!("this is node {node}") });
            false
        }
        Resource::Node(_) | Resource::Service(_) | Resource::Cluster(_) => true,
    });
    nacks
}

/// Removals of the first series, kept until its end.
#[derive(Debug, Default)]
pub(super) struct FirstSeries {
    early: Vec<ResourceKey>,
    over: bool,
}

impl FirstSeries {
    /// Holds back removals until the series is over; returns whether this Update ends it.
    pub(super) fn hold_back(&mut self, decoded: &mut Decoded) -> bool {
        if self.over {
            return false;
        }
        self.early.append(&mut decoded.delta.removals);
        self.over = decoded.last_of_initial;
        if self.over {
            decoded.delta.removals.append(&mut self.early);
        }
        self.over
    }

    /// Whether the series has ended.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheave_model::{ContentHash, Delta, NodeFacts, Upsert};
    use std::time::Duration;

    fn decoded(removals: Vec<ResourceKey>, last_of_initial: bool) -> Decoded {
        let delta = Delta { removals, ..Delta::default() };
        Decoded { nonce: 1, delta, refused: Vec::new(), last_of_initial, age: Duration::ZERO }
    }

    #[test]
    fn nothing_is_removed_before_the_first_series_ends() {
        let mut series = FirstSeries::default();
        let mut early = decoded(vec![ResourceKey::Cluster], false);
        assert!(!series.hold_back(&mut early));
        assert!(early.delta.removals.is_empty());
        let mut last = decoded(Vec::new(), true);
        assert!(series.hold_back(&mut last));
        assert_eq!(last.delta.removals, [ResourceKey::Cluster]);
        let mut later = decoded(vec![ResourceKey::Cluster], false);
        assert!(!series.hold_back(&mut later) && series.is_over());
        assert_eq!(later.delta.removals, [ResourceKey::Cluster]);
    }

    #[test]
    fn only_older_views_of_the_same_source_go_back() {
        let view =
            |source: &str, pods: u64| View { source: source.into(), versions: [("Pod".to_owned(), pods)].into() };
        assert!(goes_back(&view("a", 1), &view("a", 2)));
        assert!(!goes_back(&view("a", 2), &view("a", 2)));
        assert!(!goes_back(&view("b", 1), &view("a", 2)));
        assert!(!goes_back(&view("a", 1), &View::default()));
    }

    #[test]
    fn another_nodes_facts_are_refused() {
        let node = |name: &str| Upsert {
            hash: ContentHash(1),
            resource: Resource::Node(NodeFacts { name: name.into(), ..NodeFacts::default() }),
        };
        let mut update = decoded(Vec::new(), false);
        update.delta.upserts = vec![node("n1"), node("n2")];
        let nacks = foreign_nodes(&mut update, "n1");
        assert_eq!(update.delta.upserts.len(), 1);
        assert_eq!(nacks.len(), 1);
    }
}
