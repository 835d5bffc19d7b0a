//! A batch of nftables messages: one transaction, all or nothing.

use std::collections::BTreeSet;

use super::TABLE;
use super::expr::Expr;
use super::ruleset::{Chain, PRIORITY};
use super::sets::{Element, Role, Set};
use crate::userspace::netlink::{ACK, APPEND, Attributes, CREATE, Messages, REQUEST};

/// `NFNL_SUBSYS_NFTABLES`, in a message type's upper byte.
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;

/// Elements in one message: an IPv6 frontend takes 40 bytes, and the list's length has 16 bits.
const CHUNK: usize = 1000;

/// `struct nfgenmsg`: family, version 0, and a resource in network order.
const fn generic(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

const INET: [u8; 4] = generic(libc::NFPROTO_INET as u8, 0);

/// Messages between the batch's begin and end.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The table that it is about.
    table: &'static str,
    messages: Messages,
    /// Where the newest message starts; the last one asks for the kernel's answer.
    last_start: usize,
    /// Its number.
    last: u32,
}

impl Batch {
    /// An empty one, whose first message gets a number.
    pub(crate) fn new(first: u32) -> Self {
        let mut messages = Messages::new(first);
        messages.push(BATCH_BEGIN, REQUEST, &generic(0, SUBSYSTEM >> 8), |_| ());
        Self { table: TABLE, messages, last_start: 0, last: first }
    }

    /// Ends it. The second value is the number of the message that the kernel answers when it has committed.
    pub(crate) fn finish(mut self) -> (Messages, u32) {
        self.messages.add_flags(self.last_start, ACK);
        self.messages.push(BATCH_END, REQUEST, &generic(0, SUBSYSTEM >> 8), |_| ());
        (self.messages, self.last)
    }

    fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.last_start = self.messages.as_bytes().len();
        self.last = self.messages.push(kind, REQUEST | flags, &INET, body);
    }

    /// Makes the table where there is none.
    fn add_table(&mut self) {
        let table = self.table;
        self.push(NEW_TABLE, CREATE, |a| a.string(1, table));
    }

    /// Makes a table of another name with all that ours has, and removes it again: succeeds where the kernel knows all of
    /// it, and leaves nothing.
    pub(crate) fn try_table(&mut self, chains: &[Chain]) {
        self.table = super::TRIAL;
        self.replace_table(chains);
        self.delete_table();
        self.table = TABLE;
    }

    /// Changes nothing, and fails where the table or one of its base chains is gone.
    pub(crate) fn touch_chains(&mut self) {
        let table = self.table;
        for name in ["prerouting", "output"] {
            self.push(NEW_CHAIN, 0, |a| {
                a.string(1, table);
                a.string(3, name);
            });
        }
    }

    /// Removes the table with all in it.
    pub(crate) fn delete_table(&mut self) {
        let table = self.table;
        self.push(DELETE_TABLE, 0, |a| a.string(1, table));
    }

    /// Removes whatever table of this name there is and makes it anew, with its sets (empty), chains and rules.
    pub(crate) fn replace_table(&mut self, chains: &[Chain]) {
        self.add_table();
        self.delete_table();
        self.add_table();
        for (id, set) in Set::all().enumerate() {
            self.add_set(set, id as u32 + 1);
        }
        for chain in chains {
            self.add_chain(chain);
        }
        let table = self.table;
        for chain in chains {
            for rule in &chain.rules {
                self.push(NEW_RULE, CREATE | APPEND, |a| {
                    a.string(1, table);
                    a.string(2, chain.name);
                    a.nest(4, |list| rule.iter().for_each(|expr| expr.write(list)));
                });
            }
        }
    }

    /// Puts a rule before all others of a chain.
    pub(crate) fn insert_rule(&mut self, chain: &str, rule: &[Expr]) {
        let table = self.table;
        self.push(NEW_RULE, CREATE, |a| {
            a.string(1, table);
            a.string(2, chain);
            a.nest(4, |list| rule.iter().for_each(|expr| expr.write(list)));
        });
    }

    fn add_chain(&mut self, chain: &Chain) {
        let table = self.table;
        self.push(NEW_CHAIN, CREATE, |a| {
            a.string(1, table);
            a.string(3, chain.name);
            if let Some((kind, hook)) = chain.hook {
                a.nest(4, |h| {
                    h.be32(1, hook);
                    h.be32(2, PRIORITY as u32);
                });
                a.be32(5, 1); // policy accept
                a.string(7, kind);
            }
        });
    }

    fn add_set(&mut self, set: Set, id: u32) {
        // `nft list` names types by these numbers, six bits for each part; the kernel looks at the length alone.
        let address = if set.v4 { 7 } else { 8 };
        let length = if set.v4 { 4 } else { 16 };
        let (kind, length) =
            if set.triple() { ((address << 12) | (12 << 6) | 13, length + 8) } else { (address, length) };
        const INTERVAL: u32 = 4;
        let table = self.table;
        self.push(NEW_SET, CREATE, |a| {
            a.string(1, table);
            a.string(2, set.name());
            a.be32(3, if set.role == Role::Cidrs { INTERVAL } else { 0 });
            a.be32(4, kind);
            a.be32(5, length);
            a.be32(10, id);
        });
    }

    /// Adds elements to a set.
    pub(crate) fn add(&mut self, set: Set, elements: &BTreeSet<Element>) {
        self.elements(NEW_ELEMENTS, CREATE, set, elements);
    }

    /// Removes elements from a set.
    pub(crate) fn remove(&mut self, set: Set, elements: &BTreeSet<Element>) {
        self.elements(DELETE_ELEMENTS, 0, set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: Set, elements: &BTreeSet<Element>) {
        let table = self.table;
        let mut rest = elements.iter().peekable();
        while rest.peek().is_some() {
            let chunk = rest.by_ref().take(CHUNK);
            self.push(kind, flags, |a| {
                a.string(1, table);
                a.string(2, set.name());
                a.nest(3, |list| chunk.for_each(|element| write(element, list)));
            });
        }
    }
}

/// One element; a range is two, of which the second says that the interval ends before it.
fn write(element: &Element, list: &mut Attributes<'_>) {
    const ELEMENT: u16 = 1;
    const INTERVAL_END: u32 = 1;
    list.nest(ELEMENT, |e| e.nest(1, |key| key.bytes(1, &element.key())));
    if let Some(end) = element.end() {
        list.nest(ELEMENT, |e| {
            e.be32(3, INTERVAL_END);
            e.nest(1, |key| key.bytes(1, &end));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userspace::netlink::HEADER;
    use sheave_model::{Frontend, Protocol};

    fn kinds(bytes: &[u8]) -> Vec<(u16, u16)> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            out.push((u16::from_ne_bytes([rest[4], rest[5]]), u16::from_ne_bytes([rest[6], rest[7]])));
            rest = &rest[length.next_multiple_of(4)..];
        }
        out
    }

    #[test]
    fn many_elements_are_several_messages_of_which_the_last_is_answered() {
        let frontend = |n: u16| Element::Frontend(Frontend::new("fd00::1".parse().unwrap(), n, Protocol::Tcp));
        let elements = (1..=2500).map(frontend).collect();
        let mut batch = Batch::new(5);
        batch.add(Set { role: Role::Frontends, v4: false }, &elements);
        let (messages, last) = batch.finish();
        let expected = [
            (BATCH_BEGIN, REQUEST),
            (NEW_ELEMENTS, REQUEST | CREATE),
            (NEW_ELEMENTS, REQUEST | CREATE),
            (NEW_ELEMENTS, REQUEST | CREATE | ACK),
            (BATCH_END, REQUEST),
        ];
        assert_eq!(kinds(messages.as_bytes()), expected);
        assert_eq!(last, 8);
    }
}
