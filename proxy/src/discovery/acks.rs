//! Updates that were taken in and wait to be acknowledged until the data paths have them.

use std::collections::VecDeque;

use sheave_api::proto;
use tokio::sync::oneshot;

/// Updates that may wait. Where more do, the two oldest are answered as one: an Ack stands for every Update before it.
const LIMIT: usize = 256;

/// One of them.
#[derive(Debug)]
pub(super) struct Pending {
    nonce: u64,
    nacks: Vec<proto::Nack>,
    observed_unix_nanos: u64,
    revision: Revision,
}

/// Which revision has it.
#[derive(Debug)]
enum Revision {
    /// The store will tell.
    Awaited(oneshot::Receiver<u64>),
    Known(u64),
}

impl Pending {
    /// An Update whose revision `applied` will tell.
    pub(super) fn new(
        nonce: u64,
        nacks: Vec<proto::Nack>,
        observed_unix_nanos: u64,
        applied: oneshot::Receiver<u64>,
    ) -> Self {
        Self { nonce, nacks, observed_unix_nanos, revision: Revision::Awaited(applied) }
    }

    /// A part of the first series: acknowledged once the store has it.
    pub(super) fn early(nonce: u64, nacks: Vec<proto::Nack>) -> Self {
        Self { nonce, nacks, observed_unix_nanos: 0, revision: Revision::Known(0) }
    }
}

/// All of them, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Acks {
    queue: VecDeque<Pending>,
}

impl Acks {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds the newest.
    pub(super) fn push(&mut self, pending: Pending) {
        self.queue.push_back(pending);
        if self.queue.len() > LIMIT
            && let Some(oldest) = self.queue.pop_front()
            && let Some(next) = self.queue.front_mut()
        {
            next.nacks.splice(0..0, oldest.nacks);
        }
    }

    /// Whether the oldest can be acknowledged, given the revision that every data path has.
    pub(super) fn ready(&mut self, programmed: u64) -> bool {
        let Some(front) = self.queue.front_mut() else { return false };
        if let Revision::Awaited(applied) = &mut front.revision
            && let Ok(revision) = applied.try_recv()
        {
            front.revision = Revision::Known(revision);
        }
        matches!(front.revision, Revision::Known(revision) if revision <= programmed)
    }

    /// Takes the oldest out: its Ack, and when the controller saw what is in it (0: that says nothing).
    pub(super) fn pop(&mut self) -> Option<(proto::Ack, u64)> {
        let Pending { nonce, nacks, observed_unix_nanos, .. } = self.queue.pop_front()?;
        Some((proto::Ack { nonce, nacks }, observed_unix_nanos))
    }

    /// Waits until the store has taken in all of them.
    pub(super) async fn settle(&mut self) {
        for pending in self.queue.drain(..) {
            if let Revision::Awaited(applied) = pending.revision {
                // An error means that the store's task has ended, and then nothing is left to wait for.
                let _ = applied.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nack(reason: &str) -> proto::Nack {
        proto::Nack { name: None, reason: reason.to_owned() }
    }

    #[test]
    fn an_update_is_acknowledged_when_its_revision_is_programmed_and_in_order() {
        let mut acks = Acks::default();
        let (first, receiver) = oneshot::channel();
        acks.push(Pending::new(1, Vec::new(), 5, receiver));
        let (second, receiver) = oneshot::channel();
        acks.push(Pending::new(2, Vec::new(), 0, receiver));
        second.send(2).unwrap();
        assert!(!acks.ready(9), "the store has not answered for the first");
        first.send(1).unwrap();
        assert!(!acks.ready(0));
        assert!(acks.ready(1));
        assert_eq!(acks.pop().unwrap(), (proto::Ack { nonce: 1, nacks: Vec::new() }, 5));
        assert!(!acks.ready(1));
        assert!(acks.ready(2));
    }

    #[test]
    fn of_too_many_the_oldest_are_answered_as_one_and_no_nack_is_lost() {
        let mut acks = Acks::default();
        let mut senders = Vec::new();
        for nonce in 0..LIMIT as u64 + 3 {
            let (sender, receiver) = oneshot::channel();
            sender.send(nonce).unwrap();
            acks.push(Pending::new(nonce, vec![nack(&nonce.to_string())], 0, receiver));
            senders.push(nonce);
        }
        assert_eq!(acks.len(), LIMIT);
        assert!(acks.ready(u64::MAX));
        let (ack, _) = acks.pop().unwrap();
        assert_eq!(ack.nonce, 3);
        assert_eq!(ack.nacks.iter().map(|n| n.reason.as_str()).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    }
}
