//! Operators' questions that come by the stream, and their answers, which never hold up what the stream is for: they are
//! made by a task of their own and sent when nothing else is to be.

use std::sync::Arc;

use futures::future::BoxFuture;
use sheave_api::proto::{Answer, NodeQuestion, Question};
use tokio::sync::mpsc;

use crate::admin::AnswerParts;
use crate::metrics::Metrics;

/// Makes an answer's parts.
pub(crate) type Answerer = Arc<dyn Fn(NodeQuestion) -> BoxFuture<'static, AnswerParts> + Send + Sync>;

/// Questions that may wait; a controller asks no more at a time.
const WAITING: usize = 4;

/// AnswerParts that may wait for the stream.
const PARTS: usize = 2;

/// One stream's questions. The task behind it ends when this is dropped.
pub(super) struct Questions {
    waiting: mpsc::Sender<Question>,
    parts: mpsc::Receiver<Answer>,
    metrics: Metrics,
}

impl Questions {
    /// Nothing was asked yet.
    pub(super) fn new(answerer: Answerer, metrics: Metrics) -> Self {
        let (waiting, asked) = mpsc::channel(WAITING);
        let (outgoing, parts) = mpsc::channel(PARTS);
        tokio::spawn(answer(answerer, asked, outgoing, metrics.clone()));
        Self { waiting, parts, metrics }
    }

    /// Takes a question; one too many is not answered.
    pub(super) fn ask(&self, question: Question) {
        if self.waiting.try_send(question).is_err() {
            self.metrics.operator_questions.with_label_values(&["dropped"]).inc();
            tracing::debug!("a question of an operator is dropped, because others wait");
        }
    }

    /// The next part of an answer.
    pub(super) async fn next(&mut self) -> Answer {
        match self.parts.recv().await {
            Some(part) => part,
            // Its task has panicked; the stream goes on without answers.
            None => std::future::pending().await,
        }
    }
}

async fn answer(
    answerer: Answerer,
    mut asked: mpsc::Receiver<Question>,
    outgoing: mpsc::Sender<Answer>,
    metrics: Metrics,
) {
    while let Some(Question { id, question }) = asked.recv().await {
        for part in answerer(question.unwrap_or_default()).await {
            if outgoing.send(Answer { id, part: Some(part), last: false }).await.is_err() {
                return;
            }
        }
        if outgoing.send(Answer { id, part: None, last: true }).await.is_err() {
            return;
        }
        metrics.operator_questions.with_label_values(&["answered"]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheave_api::proto::NodeAnswer;

    #[tokio::test]
    async fn each_question_gets_its_parts_and_an_end_and_one_too_many_is_counted() {
        let answerer: Answerer = Arc::new(|question| {
            let parts = vec![NodeAnswer { error: question.node, ..NodeAnswer::default() }; 3];
            Box::pin(async move { Box::new(parts.into_iter()) as AnswerParts })
        });
        let metrics = Metrics::new().unwrap();
        let mut questions = Questions::new(answerer, metrics.clone());
        let ask = |id| Question { id, question: Some(NodeQuestion { node: id.to_string(), what: None }) };
        // Nothing is taken from the queue before this test waits.
        (1..=WAITING as u64 + 1).for_each(|id| questions.ask(ask(id)));
        for id in 1..=WAITING as u64 {
            for _ in 0..3 {
                let part = questions.next().await;
                assert_eq!((part.id, part.part.unwrap().error, part.last), (id, id.to_string(), false));
            }
            assert!(questions.next().await.last);
        }
        let count = |result| metrics.operator_questions.with_label_values(&[result]).get();
        assert_eq!(count("dropped"), 1);
        questions.ask(ask(9));
        questions.next().await;
        assert_eq!(count("answered"), WAITING as u64);
    }
}
