//! Nothing goes back in time: a replica serves a proxy only once it has seen what the proxy has applied.
//!
//! Mostly the watch brings that in a moment. A kind that still lags then is listed once more, because a quiet kind's watch
//! brings no newer version by itself. Where a list that began after the question is still older, the source itself went back
//! (a restored etcd), and the replica serves.

use std::collections::BTreeMap;
use std::time::Duration;

use sheave_index::Kind;
use sheave_model::View;
use tokio::time::Instant;

use crate::publish::{Publisher, Standing};
use crate::source::Relist;

/// How long the watch has to bring what a proxy has seen elsewhere before a list is asked for: replicas hear of a change within
/// milliseconds of each other, and a list holds up changes while it lasts.
const WATCH_FIRST: Duration = Duration::from_secs(2);

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

/// Why it may not: the proxy has seen more of these kinds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this replica lags behind the proxy in {0:?}")]
pub(super) struct Lags(Vec<Kind>);

/// Waits, at most for `patience`, until a proxy that has applied `wanted` may be served.
pub(super) async fn pass(
    publisher: &Publisher,
    relist: &Relist,
    wanted: &View,
    patience: Duration,
) -> Result<Pass, Lags> {
    let arrived = Instant::now();
    let begun = relist.begun();
    let mut views = publisher.watch_views();
    let mut asked = false;
    loop {
        views.borrow_and_update();
        let lags = match judge(&publisher.standing(), wanted, &begun) {
            Ok(pass) => return Ok(pass),
            Err(lags) => lags,
        };
        if !asked && arrived.elapsed() >= WATCH_FIRST {
            asked = true;
            let now = relist.begun();
            // One that has begun since may be on its way.
            lags.0.iter().filter(|kind| now.get(kind) == begun.get(kind)).for_each(|&kind| relist.request(kind));
        }
        let pause = if asked { patience } else { patience.min(WATCH_FIRST) };
        match tokio::time::timeout_at(arrived + pause, views.changed()).await {
            Ok(Ok(())) => {}
            Err(_) if pause < patience => {}
            Ok(Err(_)) | Err(_) => return Err(lags),
        }
    }
}

/// `begun`: how many lists of each kind had begun when the proxy came.
fn judge(standing: &Standing, wanted: &View, begun: &BTreeMap<Kind, u64>) -> Result<Pass, Lags> {
    if wanted.source.is_empty() {
        return Ok(Pass::Reached);
    }
    if wanted.source != standing.view.source {
        return Ok(Pass::OtherSource);
    }
    let seen = |kind: &Kind| standing.view.versions.get(kind.as_str()).copied().unwrap_or_default();
    // A kind that isn't watched here has no part in what is computed here.
    let lags = |kind: &Kind| wanted.versions.get(kind.as_str()).is_some_and(|&version| version > seen(kind));
    let mut lagging: Vec<Kind> = Kind::ALL.into_iter().filter(lags).collect();
    if lagging.is_empty() {
        return Ok(Pass::Reached);
    }
    let listed = |kind: &Kind| standing.lists.get(kind).map_or(0, |lists| lists.ended);
    lagging.retain(|kind| listed(kind) <= begun.get(kind).copied().unwrap_or_default());
    if lagging.is_empty() { Ok(Pass::SourceWentBack) } else { Err(Lags(lagging)) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::publish::Lists;
    use crate::source::{Event, Feed};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn view(source: &str, pods: u64) -> View {
        View { source: source.into(), versions: [("Pod".to_owned(), pods)].into() }
    }

    fn standing(pods: u64, ended: u64) -> Standing {
        let lists = [(Kind::Pod, Lists { begun: ended, ended })].into();
        Standing { ready: true, view: view("a", pods), lists, ..Standing::new() }
    }

    fn publisher() -> Arc<Publisher> {
        let publisher = Arc::new(Publisher::new(Arc::new(Metrics::new())));
        publisher.publish(Vec::new(), 0, standing(7, 0));
        publisher
    }

    #[test]
    fn a_replica_that_has_seen_as_much_serves_at_once() {
        let judge = |wanted: &View| judge(&standing(7, 1), wanted, &[(Kind::Pod, 1)].into());
        assert_eq!(judge(&view("a", 7)), Ok(Pass::Reached));
        assert_eq!(judge(&View::default()), Ok(Pass::Reached));
        assert_eq!(judge(&view("b", 9)), Ok(Pass::OtherSource));
        assert_eq!(judge(&view("a", 8)), Err(Lags(vec![Kind::Pod])));
    }

    #[test]
    fn only_a_list_that_began_after_the_question_proves_that_the_source_went_back() {
        let at = |ended, begun| judge(&standing(7, ended), &view("a", 9), &[(Kind::Pod, begun)].into());
        assert_eq!(at(3, 4), Err(Lags(vec![Kind::Pod])));
        assert_eq!(at(4, 4), Err(Lags(vec![Kind::Pod])), "that one had begun before");
        assert_eq!(at(5, 4), Ok(Pass::SourceWentBack));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_catches_up_in_a_moment_spares_the_list() {
        let (publisher, relist) = (publisher(), Relist::default());
        let source = publisher.clone();
        tokio::spawn(async move {
            tokio::time::sleep(WATCH_FIRST / 2).await;
            source.publish(Vec::new(), 0, standing(9, 0));
        });
        assert_eq!(pass(&publisher, &relist, &view("a", 9), PATIENCE).await, Ok(Pass::Reached));
        assert!(relist.wanted_within(Kind::Pod, PATIENCE).await.is_err(), "no list was asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_kind_is_listed_once_more_to_get_there() {
        let (publisher, (feed, mut batches, relist)) = (publisher(), Feed::new(Arc::new(Metrics::new())));
        let source = publisher.clone();
        tokio::spawn(async move {
            for number in 1.. {
                feed.relist_wanted(Kind::Pod).await;
                feed.listed(vec![Event::BeginResync(Kind::Pod), Event::EndResync(Kind::Pod, 9)]).await.unwrap();
                batches.recv().await.unwrap();
                source.publish(Vec::new(), 0, standing(9, number));
            }
        });
        let started = Instant::now();
        assert_eq!(pass(&publisher, &relist, &view("a", 9), PATIENCE).await, Ok(Pass::Reached));
        assert_eq!(started.elapsed().as_secs(), WATCH_FIRST.as_secs());
        tokio::time::advance(Duration::from_secs(1)).await;
        // Nobody ever saw such a version: one list proves it, and waits for its turn.
        assert_eq!(pass(&publisher, &relist, &view("a", u64::MAX), PATIENCE).await, Ok(Pass::SourceWentBack));
        assert!(started.elapsed() >= PATIENCE, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_does_not_catch_up_refuses_in_time() {
        let (publisher, relist, started) = (publisher(), Relist::default(), Instant::now());
        let refused = pass(&publisher, &relist, &view("a", 9), PATIENCE).await;
        assert_eq!(refused, Err(Lags(vec![Kind::Pod])));
        assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());
        relist.wanted_within(Kind::Pod, PATIENCE).await.expect("a list was asked for");
    }
}
