//! Leader election by a Lease (coordination.k8s.io/v1), with client-go's times: a lease holds for 15 s, its holder renews it
//! every 2 s and stands down after 10 s without success. Other replicas measure the 15 s with their own clocks, from when
//! they saw the lease change last, so clocks needn't agree.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::metrics::Metrics;

/// The Lease's name.
const NAME: &str = "sheave-controller";

const DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// What to do about a lease as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is ours: renew it.
    Renew,
    /// It is free, or its holder has been silent for too long: take it.
    Take,
    /// Somebody else has it.
    Leave,
}

/// One replica's part in an election.
#[derive(Debug)]
struct Election {
    identity: String,
    /// Holder and version of the lease when it was last seen to change, and when that was.
    observed: Option<(String, Instant)>,
    /// When it was last renewed by us.
    renewed: Option<Instant>,
}

impl Election {
    fn new(identity: String) -> Self {
        Self { identity, observed: None, renewed: None }
    }

    fn step(&mut self, lease: &Lease, now: Instant) -> Step {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.observed = Some((version, now));
        }
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder == self.identity {
            return Step::Renew;
        }
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(DURATION, Duration::from_secs);
        let silent = self.observed.as_ref().is_some_and(|&(_, since)| now.duration_since(since) > duration);
        if holder.is_empty() || silent { Step::Take } else { Step::Leave }
    }

    /// Whether this replica leads, by its own clock.
    fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now.duration_since(renewed) < RENEW_DEADLINE)
    }

    /// The lease as it is to be written; `old` is what it replaces.
    fn written(&self, old: Option<&Lease>, step: Step, wall: Timestamp) -> Lease {
        let before = old.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let taken = step == Step::Take;
        let transitions = before.lease_transitions.unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if taken { Some(MicroTime(wall)) } else { before.acquire_time },
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(if taken && old.is_some() { transitions.saturating_add(1) } else { transitions }),
            ..before
        };
        let metadata = match old {
            Some(lease) => lease.metadata.clone(), // with its resourceVersion: two replicas can't both take it
            None => ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
        };
        Lease { metadata, spec: Some(spec) }
    }
}

/// Takes part until the program ends, then gives the lease back. Tells `leading`, and sets `sheave_leader`.
pub(crate) async fn campaign(
    client: Client,
    namespace: String,
    identity: String,
    metrics: Arc<Metrics>,
    leading: watch::Sender<bool>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let leases = Api::<Lease>::namespaced(client, &namespace);
    let mut election = Election::new(identity);
    let mut led = false;
    loop {
        // A request that hangs must not outlast the deadline by which this replica has to stand down.
        let round = tokio::time::timeout(RENEW_DEADLINE / 2, round(&leases, &mut election)).await;
        if let Some(error) = round.map_or_else(|_| Some(anyhow::anyhow!("no answer came in time")), Result::err) {
            warn!(namespace, error = format!("{error:#}"), "the Lease can't be read or written");
        }
        let leads = election.leads(Instant::now());
        if leads != led {
            info!(identity = election.identity, leads, "leadership has changed");
            led = leads;
        }
        metrics.leader.set(leads.into());
        leading.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = stopping.wait_for(|&stop| stop) => break,
        }
    }
    metrics.leader.set(0);
    leading.send_replace(false);
    if led {
        let given_back = tokio::time::timeout(RETRY, release(&leases, &election)).await;
        if let Err(error) = given_back.context("no answer came in time").flatten() {
            warn!(namespace, error = format!("{error:#}"), "the Lease can't be given back; it runs out by itself");
        }
    }
    Ok(())
}

async fn round(leases: &Api<Lease>, election: &mut Election) -> anyhow::Result<()> {
    let asked = Instant::now();
    let old = leases.get_opt(NAME).await?;
    let step = old.as_ref().map_or(Step::Take, |lease| election.step(lease, asked));
    if step == Step::Leave {
        election.renewed = None;
        return Ok(());
    }
    let wanted = election.written(old.as_ref(), step, Timestamp::now());
    let params = PostParams::default();
    let result = match old {
        Some(_) => leases.replace(NAME, &params, &wanted).await,
        None => leases.create(&params, &wanted).await,
    };
    match result {
        Ok(_) => election.renewed = Some(asked),
        // Another replica was faster.
        Err(Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Gives the lease back, so that the next replica needn't wait for it to run out.
async fn release(leases: &Api<Lease>, election: &Election) -> anyhow::Result<()> {
    let Some(mut lease) = leases.get_opt(NAME).await? else { return Ok(()) };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(&election.identity) {
        return Ok(());
    }
    spec.holder_identity = Some(String::new());
    spec.renew_time = Some(MicroTime(Timestamp::now()));
    leases.replace(NAME, &PostParams::default(), &lease).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        let metadata = ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() };
        let spec =
            LeaseSpec { holder_identity: Some(holder.into()), lease_duration_seconds: Some(15), ..Default::default() };
        Lease { metadata, spec: Some(spec) }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_its_holder_is_silent_for_its_duration() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut me = Election::new("me".into());
        assert_eq!(me.step(&lease("", "1"), start), Step::Take);
        assert_eq!(me.step(&lease("me", "2"), start), Step::Renew);
        assert_eq!(me.step(&lease("other", "3"), start), Step::Leave);
        assert_eq!(me.step(&lease("other", "3"), after(15)), Step::Leave);
        assert_eq!(me.step(&lease("other", "4"), after(16)), Step::Leave, "it was renewed");
        assert_eq!(me.step(&lease("other", "4"), after(32)), Step::Take);
    }

    #[test]
    fn whoever_cannot_renew_stands_down_before_the_lease_runs_out() {
        let start = Instant::now();
        let mut me = Election::new("me".into());
        assert!(!me.leads(start));
        me.renewed = Some(start);
        assert!(me.leads(start + Duration::from_secs(9)));
        assert!(!me.leads(start + Duration::from_secs(10)));
    }

    #[test]
    fn taking_counts_a_transition_and_renewing_keeps_when_it_was_taken() {
        let me = Election::new("me".into());
        let (t1, t2) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let first = me.written(None, Step::Take, t1).spec.unwrap();
        assert_eq!((first.lease_transitions, first.acquire_time.map(|t| t.0)), (Some(0), Some(t1)));
        let old = Lease {
            spec: Some(LeaseSpec { acquire_time: Some(MicroTime(t1)), ..Default::default() }),
            ..lease("x", "9")
        };
        let taken = me.written(Some(&old), Step::Take, t2);
        assert_eq!(taken.metadata.resource_version.as_deref(), Some("9"));
        let spec = taken.spec.as_ref().unwrap();
        assert_eq!((spec.lease_transitions, spec.acquire_time.as_ref().map(|t| t.0)), (Some(1), Some(t2)));
        let renewed = me.written(Some(&taken), Step::Renew, t1).spec.unwrap();
        assert_eq!((renewed.lease_transitions, renewed.acquire_time.map(|t| t.0)), (Some(1), Some(t2)));
    }
}
