//! What the maps hold, read back after a restart.

use std::collections::{BTreeMap, BTreeSet};

use sheave_abi::FRONTEND_LISTENER;

use crate::realized::Realized;
use crate::target::Base;
use crate::{MapOp, Restored};

/// Rebuilds the state from rows, and says which target was whose. Rows that lead nowhere are kept with their target's id, to
/// be swept like any others.
pub(crate) fn restore(rows: &Restored) -> (Realized, BTreeMap<[u8; 16], u32>) {
    let mut realized = Realized::default();
    let mut identities = BTreeMap::new();
    let mut ambiguous = BTreeSet::new();
    for &(id, row) in &rows.targets {
        realized.note(&MapOp::PutTarget { id, row });
        if identities.insert(row.identity, id).is_some() {
            ambiguous.insert(row.identity);
        }
    }
    identities.retain(|identity, _| !ambiguous.contains(identity));
    for &(id, row) in &rows.backends {
        realized.note(&MapOp::PutBackend { id, row });
    }
    for &(key, row) in &rows.slots {
        realized.note(&MapOp::PutSlot { key, row });
    }
    for &(key, row) in &rows.frontends {
        realized.note(&MapOp::PutFrontend { key, row });
    }
    // If the proxy died between two commits of one target, its frontends name two sets. Either serves as the base.
    for (_, row) in rows.frontends.iter().filter(|(_, row)| row.flags & FRONTEND_LISTENER == 0) {
        if let Some(target) = realized.targets.get_mut(&row.target) {
            target.base = target.base.max(Base { generation: row.generation, count: row.count });
        }
    }
    for target in realized.targets.values_mut() {
        target.standing = target.members.iter().filter(|(_, member)| !member.leaving).map(|(id, _)| *id).collect();
    }
    (realized, identities)
}
