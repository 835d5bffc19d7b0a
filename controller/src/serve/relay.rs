//! Questions of operators on their way to one proxy, and its answers on the way back.
//!
//! They share the proxy's stream with what it serves by, so they never wait there: a few questions at a time, answers into
//! a channel that holds the largest, and whoever doesn't read them loses the rest.

use std::collections::BTreeMap;

use sheave_api::proto::{Answer, NodeAnswer, NodeQuestion, Question};
use sheave_api::{MAX_ANSWER_BYTES, MAX_PART_BYTES};
use tokio::sync::mpsc;

/// Questions to one proxy that may be unanswered.
const OPEN: usize = 4;

/// Parts that may wait for whoever asked.
pub(super) const PARTS: usize = MAX_ANSWER_BYTES / MAX_PART_BYTES;

/// A question with the way back. `None` is the end of the answer; without it the answer was cut.
#[derive(Debug)]
pub(crate) struct Relayed {
    pub(super) question: NodeQuestion,
    pub(super) answers: mpsc::Sender<Option<NodeAnswer>>,
}

/// One stream's questions. Dropped, it cuts the answers that are still to come.
#[derive(Debug)]
pub(crate) struct Relay {
    waiting: mpsc::Receiver<Relayed>,
    open: BTreeMap<u64, mpsc::Sender<Option<NodeAnswer>>>,
    last: u64,
}

impl Relay {
    /// A relay and the end that takes questions for it.
    pub(super) fn new() -> (mpsc::Sender<Relayed>, Self) {
        let (sender, waiting) = mpsc::channel(OPEN);
        (sender, Self { waiting, open: BTreeMap::new(), last: 0 })
    }

    /// Whether one more question may be on its way. Those whose asker has gone no longer count: a proxy that doesn't know
    /// questions never answers.
    pub(super) fn may_ask(&mut self) -> bool {
        self.open.retain(|_, answers| !answers.is_closed());
        self.open.len() < OPEN
    }

    /// The next question; none ever where nobody can ask any more.
    pub(super) async fn next(&mut self) -> Relayed {
        match self.waiting.recv().await {
            Some(relayed) => relayed,
            None => std::future::pending().await,
        }
    }

    /// Notes who waits for the answer.
    pub(super) fn ask(&mut self, relayed: Relayed) -> Question {
        self.last += 1;
        self.open.insert(self.last, relayed.answers);
        Question { id: self.last, question: Some(relayed.question) }
    }

    /// Hands on a part of an answer. One to a question that nobody waits for is dropped.
    pub(super) fn answered(&mut self, answer: Answer) {
        let Some(answers) = self.open.get(&answer.id) else { return };
        let mut taken = answer.part.is_none_or(|part| answers.try_send(Some(part)).is_ok());
        if answer.last && taken {
            taken = answers.try_send(None).is_ok();
        }
        if answer.last || !taken {
            self.open.remove(&answer.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> (Relayed, mpsc::Receiver<Option<NodeAnswer>>) {
        let (answers, receiver) = mpsc::channel(2);
        (Relayed { question: NodeQuestion::default(), answers }, receiver)
    }

    #[tokio::test]
    async fn answers_find_their_question_and_a_cut_one_has_no_end() {
        let (sender, mut relay) = Relay::new();
        let (question, mut answers) = asked();
        sender.send(question).await.unwrap();
        let relayed = relay.next().await;
        let id = relay.ask(relayed).id;
        relay.answered(Answer { id: id + 1, part: Some(NodeAnswer::default()), last: true });
        relay.answered(Answer { id, part: Some(NodeAnswer::default()), last: true });
        assert!(matches!(answers.recv().await, Some(Some(_))));
        assert_eq!(answers.recv().await, Some(None));
        assert_eq!(answers.recv().await, None);
        let (question, mut slow) = asked();
        let id = relay.ask(question).id;
        (0..3).for_each(|_| relay.answered(Answer { id, part: Some(NodeAnswer::default()), last: false }));
        let mut heard = Vec::new();
        while let Some(part) = slow.recv().await {
            heard.push(part.is_some());
        }
        assert_eq!(heard, [true, true], "cut, and no end");
    }

    #[tokio::test]
    async fn a_proxy_that_never_answers_is_asked_again_once_askers_have_gone() {
        let (_sender, mut relay) = Relay::new();
        let waiting: Vec<_> = (0..OPEN)
            .map(|_| {
                let (question, answers) = asked();
                relay.ask(question);
                answers
            })
            .collect();
        assert!(!relay.may_ask());
        drop(waiting);
        assert!(relay.may_ask());
    }
}
