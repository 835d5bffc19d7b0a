//! What differs between two snapshots: the frontends and Services whose rows have to be looked at.

use std::collections::BTreeSet;

use imbl::ordmap::DiffItem;
use sheave_model::{AppProtocol, Frontend, NodeFacts, ServiceKey, Snapshot, claims};

use crate::TargetKey;

/// What has to be looked at. Too much is harmless, too little is not.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) frontends: BTreeSet<Frontend>,
    pub(crate) services: BTreeSet<ServiceKey>,
}

/// Compares two snapshots. Costs what differs, if one was made from the other.
pub(crate) fn changes(old: &Snapshot, new: &Snapshot) -> Changes {
    let mut changes = Changes::default();
    for item in old.frontends.diff(&new.frontends) {
        match item {
            DiffItem::Add(frontend, _) | DiffItem::Remove(frontend, _) => changes.frontends.insert(*frontend),
            DiffItem::Update { new: (frontend, _), .. } => changes.frontends.insert(*frontend),
        };
    }
    let nothing = NodeFacts::default();
    let node = new.node.as_ref().map_or(&nothing, |(_, node)| node);
    for item in old.services.diff(&new.services) {
        let (key, state) = match item {
            DiffItem::Remove(key, _) => (key, None), // its frontends differ too
            DiffItem::Add(key, state) | DiffItem::Update { new: (key, state), .. } => (key, Some(state)),
        };
        // A port that was renamed or is carried otherwise leads the same frontends elsewhere.
        if let Some(state) = state {
            changes.frontends.extend(claims(&state.service, node).into_iter().map(|claim| claim.frontend));
        }
        changes.services.insert(key.clone());
    }
    changes
}

/// Where a frontend should lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    /// It is no frontend.
    Nowhere,
    /// To the transparent listeners.
    Listener,
    /// To a target.
    Target(TargetKey),
}

/// Where a frontend leads in a snapshot.
pub(crate) fn lead(snapshot: &Snapshot, frontend: &Frontend) -> Lead {
    let Some((route, state)) = snapshot.lookup(frontend) else { return Lead::Nowhere };
    let Some(port) = state.service.ports.get(route.port) else { return Lead::Nowhere };
    match port.app {
        AppProtocol::Http => Lead::Listener,
        AppProtocol::Opaque => Lead::Target(TargetKey::new(&route.service, port, frontend.address.is_ipv4())),
    }
}
