//! Our nftables table, written by netlink: no `nft` program, and no table but our own.
//!
//! At start the table is replaced as a whole in one transaction, so that whatever an earlier proxy left is adopted without
//! a moment in which a frontend's packets fall through. Later only set elements change, by the difference between two
//! snapshots, each difference being one transaction.

mod expr;
mod ruleset;
mod sets;
mod wire;

use std::collections::BTreeMap;

use sheave_model::{Protocol, Snapshot};

use super::netlink::{Netlink, NetlinkError};
use wire::Batch;

pub(crate) use ruleset::Marks;
use sets::{Element, Set};

/// The table's name, in family inet.
pub(crate) const TABLE: &str = "sheave";
/// Of the table that a start tries the kernel with.
const TRIAL: &str = "sheave-trial";

/// Our table and what it holds.
#[derive(Debug)]
pub(crate) struct Table {
    netlink: Netlink,
    marks: Marks,
    port: u16,
    /// What was written last; `None` until the table was replaced, and after a failure.
    current: Option<Snapshot>,
    counts: BTreeMap<Set, usize>,
    sequence: u32,
}

impl Table {
    /// Finds out whether this process may write tables here, and whether the kernel knows every expression that ours has.
    /// Leaves nothing behind, and no packet is touched yet.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; EPROTONOSUPPORT, EOPNOTSUPP or ENOENT on a kernel without nftables or a part of it.
    pub(crate) fn open(marks: Marks, port: u16) -> Result<Self, NetlinkError> {
        let netlink = Netlink::open(libc::NETLINK_NETFILTER)?;
        let mut table = Self { netlink, marks, port, current: None, counts: BTreeMap::new(), sequence: 1 };
        table.commit(|batch| batch.try_table(&ruleset::chains(marks, port)))?;
        Ok(table)
    }

    /// Brings the table to a snapshot. Returns whether a UDP frontend that the table may have had is none any more.
    ///
    /// # Errors
    /// What the kernel refused. Nothing was changed then, and the next call writes the table anew.
    pub(crate) fn program(&mut self, snapshot: &Snapshot) -> Result<bool, NetlinkError> {
        let empty = Snapshot::default();
        let current = self.current.take();
        let changes = sets::changes(current.as_ref().unwrap_or(&empty), snapshot);
        let whole = current.is_none();
        let (marks, port) = (self.marks, self.port);
        if whole || !changes.is_empty() {
            self.commit(|batch| {
                if whole {
                    batch.replace_table(&ruleset::chains(marks, port));
                }
                changes.remove.iter().for_each(|(set, elements)| batch.remove(*set, elements));
                changes.add.iter().for_each(|(set, elements)| batch.add(*set, elements));
            })?;
        }
        if whole {
            self.counts.clear();
        }
        for (set, elements) in &changes.add {
            *self.counts.entry(*set).or_default() += elements.len();
        }
        for (set, elements) in &changes.remove {
            *self.counts.entry(*set).or_default() -= elements.len();
        }
        self.current = Some(snapshot.clone());
        let gone = |element: &Element| match element {
            Element::Frontend(frontend) => frontend.protocol == Protocol::Udp && snapshot.lookup(frontend).is_none(),
            Element::Address(_) | Element::Range(..) => false,
        };
        Ok(whole || changes.remove.values().flatten().any(gone))
    }

    /// How many elements each set has, those that ever had one.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.counts.iter().map(|(set, count)| (set.name(), *count))
    }

    /// Finds out whether the table is still there; whoever flushes all rules removes ours too.
    ///
    /// # Errors
    /// ENOENT where it is gone; the next [`Table::program`] makes it anew.
    pub(crate) fn probe(&mut self) -> Result<(), NetlinkError> {
        let result = self.commit(Batch::touch_chains);
        if result.is_err() {
            self.current = None;
        }
        result
    }

    /// Drops packets that open TCP connections to frontends, until the table is written anew.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(crate) fn hold_back(&mut self) -> Result<(), NetlinkError> {
        let (chain, rule) = ruleset::hold_back();
        self.commit(|batch| batch.insert_rule(chain, &rule))
    }

    /// Removes the table.
    ///
    /// # Errors
    /// What the kernel refused; that there is none is no error.
    pub(crate) fn remove() -> Result<(), NetlinkError> {
        let netlink = Netlink::open(libc::NETLINK_NETFILTER)?;
        let mut batch = Batch::new(1);
        batch.delete_table();
        let (messages, last) = batch.finish();
        match netlink.transact(&messages, last) {
            Err(e) if e.code() == libc::ENOENT => Ok(()),
            other => other,
        }
    }

    fn commit(&mut self, fill: impl FnOnce(&mut Batch)) -> Result<(), NetlinkError> {
        let mut batch = Batch::new(self.sequence);
        fill(&mut batch);
        let (messages, last) = batch.finish();
        self.sequence = messages.next();
        self.netlink.transact(&messages, last)
    }
}
