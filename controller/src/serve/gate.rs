//! Nothing goes back in time: a replica serves a proxy only once it has seen what the proxy has applied.
//!
//! A kind that lags is listed once more, because a quiet kind's watch brings no newer version by itself. Where lists that
//! began after the question are still older, the source itself went back (a restored etcd), and the replica serves.

use std::collections::BTreeMap;
use std::time::Duration;

use sheave_index::Kind;
use sheave_model::View;
use tokio::time::Instant;

use crate::publish::{Publisher, Standing};
use crate::source::Relist;

/// Why a proxy may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Everything it has applied has been seen here.
    Reached,
    /// It holds something of another source, whose versions say nothing here.
    OtherSource,
    /// It holds something newer than the source itself has now.
    SourceWentBack,
}

/// Why it may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Closed {
    /// The first full list isn't complete.
    #[error("this replica hasn't listed everything yet")]
    NotReady,
    /// The proxy has seen more.
    #[error("this replica lags behind the proxy in {0:?}")]
    Lags(Vec<Kind>),
}

/// Waits, at most for `patience`, until a proxy that has applied `wanted` may be served.
pub(super) async fn pass(
    publisher: &Publisher,
    relist: &Relist,
    wanted: &View,
    patience: Duration,
) -> Result<Pass, Closed> {
    let deadline = Instant::now() + patience;
    let mut views = publisher.watch_views();
    let mut asked = BTreeMap::new();
    loop {
        views.borrow_and_update();
        let standing = publisher.standing();
        let closed = match judge(&standing, wanted, &mut asked) {
            Judgement::Pass(pass) => return Ok(pass),
            Judgement::Wait(closed, list) => {
                list.into_iter().for_each(|kind| relist.request(kind));
                closed
            }
        };
        match tokio::time::timeout_at(deadline, views.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(closed),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Pass(Pass),
    /// Not yet; these kinds should be listed once more.
    Wait(Closed, Vec<Kind>),
}

/// For each kind that lagged at first sight: the newest list that had begun by then, and the newest that had ended when
/// another was asked for.
type Asked = BTreeMap<Kind, (u64, u64)>;

fn judge(standing: &Standing, wanted: &View, asked: &mut Asked) -> Judgement {
    if !standing.ready {
        return Judgement::Wait(Closed::NotReady, Vec::new());
    }
    if wanted.source.is_empty() {
        return Judgement::Pass(Pass::Reached);
    }
    if wanted.source != standing.view.source {
        return Judgement::Pass(Pass::OtherSource);
    }
    let seen = |kind: &Kind| standing.view.versions.get(kind.as_str()).copied().unwrap_or_default();
    // A kind that isn't watched here has no part in what is computed here.
    let lags = |kind: &Kind| wanted.versions.get(kind.as_str()).is_some_and(|&version| version > seen(kind));
    let lagging: Vec<Kind> = Kind::ALL.into_iter().filter(lags).collect();
    if lagging.is_empty() {
        return Judgement::Pass(Pass::Reached);
    }
    let mut list = Vec::new();
    let mut settled = true;
    for &kind in &lagging {
        let now = standing.lists.get(&kind).copied().unwrap_or_default();
        let first_sight = !asked.contains_key(&kind);
        let (begun, asked_at) = asked.entry(kind).or_insert((now.begun, now.ended));
        // The list after `begun` may have begun before the question and be on its way through the queue; the one after that
        // can't.
        if now.ended >= *begun + 2 {
            continue;
        }
        settled = false;
        if first_sight || now.ended > *asked_at {
            *asked_at = now.ended;
            list.push(kind);
        }
    }
    if settled { Judgement::Pass(Pass::SourceWentBack) } else { Judgement::Wait(Closed::Lags(lagging), list) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::publish::Lists;

    fn view(source: &str, pods: u64) -> View {
        View { source: source.into(), versions: [("Pod".to_owned(), pods)].into() }
    }

    fn standing(pods: u64, begun: u64, ended: u64) -> Standing {
        let lists = [(Kind::Pod, Lists { begun, ended })].into();
        Standing { ready: true, view: view("a", pods), lists, ..Standing::new() }
    }

    #[test]
    fn a_replica_that_has_seen_as_much_serves_at_once() {
        let mut asked = Asked::new();
        assert_eq!(judge(&standing(7, 1, 1), &view("a", 7), &mut asked), Judgement::Pass(Pass::Reached));
        assert_eq!(judge(&standing(7, 1, 1), &View::default(), &mut asked), Judgement::Pass(Pass::Reached));
        assert_eq!(judge(&standing(7, 1, 1), &view("b", 9), &mut asked), Judgement::Pass(Pass::OtherSource));
        let mut unready = standing(7, 1, 1);
        unready.ready = false;
        assert_eq!(judge(&unready, &view("b", 9), &mut asked), Judgement::Wait(Closed::NotReady, vec![]));
    }

    #[test]
    fn only_lists_that_began_after_the_question_prove_that_the_source_went_back() {
        let mut asked = Asked::new();
        let wanted = view("a", 9);
        let lags = || Closed::Lags(vec![Kind::Pod]);
        let mut at = |begun, ended| judge(&standing(7, begun, ended), &wanted, &mut asked);
        assert_eq!(at(4, 3), Judgement::Wait(lags(), vec![Kind::Pod]), "asks once");
        assert_eq!(at(4, 3), Judgement::Wait(lags(), vec![]), "doesn't ask again while it waits");
        assert_eq!(at(4, 4), Judgement::Wait(lags(), vec![Kind::Pod]), "that one had begun before");
        assert_eq!(at(5, 5), Judgement::Wait(lags(), vec![Kind::Pod]), "that one may have");
        assert_eq!(at(6, 5), Judgement::Wait(lags(), vec![]));
        assert_eq!(at(6, 6), Judgement::Pass(Pass::SourceWentBack));
    }

    #[tokio::test]
    async fn a_lagging_replica_lists_once_more_and_serves_when_it_has_caught_up() {
        let publisher = Arc::new(Publisher::new(Arc::new(Metrics::new())));
        publisher.publish(Vec::new(), 0, standing(7, 1, 1));
        let (feed, _batches, relist) = crate::source::Feed::new(Arc::new(Metrics::new()));
        let source = publisher.clone();
        let lister = tokio::spawn(async move {
            feed.relist_wanted(Kind::Pod).await;
            source.publish(Vec::new(), 0, standing(9, 2, 2));
        });
        let wanted = view("a", 9);
        assert_eq!(pass(&publisher, &relist, &wanted, Duration::from_secs(10)).await, Ok(Pass::Reached));
        lister.await.unwrap();
    }

    #[tokio::test]
    async fn a_replica_that_does_not_catch_up_refuses_in_time() {
        let publisher = Publisher::new(Arc::new(Metrics::new()));
        publisher.publish(Vec::new(), 0, standing(7, 1, 1));
        let (started, patience) = (Instant::now(), Duration::from_millis(50));
        let refused = pass(&publisher, &Relist::default(), &view("a", 9), patience).await;
        assert_eq!(refused, Err(Closed::Lags(vec![Kind::Pod])));
        assert!((patience..patience * 20).contains(&started.elapsed()), "{:?}", started.elapsed());
    }
}
