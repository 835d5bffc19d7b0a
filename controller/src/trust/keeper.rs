//! The task behind `--trust kube`: every few seconds it looks at what is there and puts right what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use sheave_api::content_hash;
use tokio::sync::watch;
use tracing::{info, warn};

use super::certificate::Serving;
use super::directory::Directory;
use super::keys::{Keys, Previous};
use super::objects::Objects;
use super::replicas::{self, Acknowledged, Roll, Seen, short_hash};
use super::rotation::{self, Facts, Plan};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::serve::Nodes;

/// Between two looks: a new replica or a new CA is known everywhere within twice this.
const PERIOD: Duration = Duration::from_secs(5);

/// The same until there is a CA, so that a new cluster waits for nobody.
const HASTE: Duration = Duration::from_millis(500);

/// One look takes at most this long; an API server that hangs is asked again.
const PATIENCE: Duration = Duration::from_secs(15);

/// Taking back one's Lease at the end takes at most this long; it runs out by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the task needs.
#[derive(Clone)]
pub(crate) struct Trust {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// Where proxies reach this replica.
    pub(crate) advertise: SocketAddr,
    /// Whether this replica is the one that writes.
    pub(crate) leads: watch::Receiver<bool>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) metrics: Arc<Metrics>,
    /// What is shown to proxies.
    pub(crate) serving: Arc<Serving>,
    /// What is sent to them.
    pub(crate) directory: watch::Sender<Arc<Directory>>,
    /// True once the program ends.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Keeps everything right until the program ends, then takes this replica off the list.
pub(crate) async fn keep(trust: Trust) -> anyhow::Result<()> {
    let (mut leads, mut stopping) = (trust.leads.clone(), trust.stopping.clone());
    let mut keeper = Keeper::new(trust);
    loop {
        leads.borrow_and_update();
        let looked = tokio::time::timeout(PATIENCE, keeper.look()).await;
        let errors = looked.unwrap_or_else(|_| vec![anyhow::anyhow!("the API server does not answer in time")]);
        keeper.tell(&errors);
        let pause = if keeper.held.is_some() { PERIOD } else { HASTE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Nobody leads any more once the sender is gone, which is at the end only.
            Ok(()) = leads.changed() => {}
            _ = stopping.wait_for(|&stop| stop) => break,
        }
    }
    let name = replicas::lease_name(keeper.trust.advertise);
    let forgotten = tokio::time::timeout(FAREWELL, keeper.objects.forget(&name)).await;
    if let Err(error) = forgotten.context("no answer came in time").flatten() {
        warn!(error = format!("{error:#}"), "this replica's Lease stays and runs out by itself");
    }
    Ok(())
}

pub(super) struct Keeper {
    trust: Trust,
    objects: Objects,
    /// The keys in use; they outlast the Secret.
    held: Option<Keys>,
    /// What the Secret last held, and since when.
    stage: (String, Instant),
    seen: Seen,
    told: String,
}

impl Keeper {
    pub(super) fn new(trust: Trust) -> Self {
        let objects = Objects::new(&trust.client, &trust.namespace);
        Self {
            trust,
            objects,
            held: None,
            stage: (String::new(), Instant::now()),
            seen: Seen::default(),
            told: String::new(),
        }
    }

    /// Looks once. Returns what could not be done; the rest was.
    pub(super) async fn look(&mut self) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        let leads = *self.trust.leads.borrow();
        if !leads {
            // What a leader showed is no longer this replica's to say.
            self.trust.metrics.ca_unacknowledged.set(0);
        }
        let leases = match self.objects.leases().await {
            Ok(leases) => leases,
            Err(error) => return vec![error],
        };
        let roll = self.seen.roll(&leases, Instant::now(), Timestamp::now());
        let mine = self.acknowledged_here();
        errors.extend(self.announce(&leases, mine.as_ref()).await.err());
        if let Err(error) = self.update_keys(leads, &roll, mine).await {
            errors.push(error);
        }
        if let Some(keys) = self.held.clone() {
            errors.extend(self.use_keys(&keys, &roll).err());
            if leads {
                errors.extend(self.publish(&roll).await.err());
            }
        }
        if leads {
            for name in roll.dead.iter().filter(|name| **name != replicas::lease_name(self.trust.advertise)) {
                errors.extend(self.objects.forget(name).await.err());
            }
        }
        errors
    }

    async fn announce(&self, leases: &[Lease], mine: Option<&Acknowledged>) -> anyhow::Result<()> {
        let name = replicas::lease_name(self.trust.advertise);
        let old = leases.iter().find(|lease| lease.metadata.name.as_deref() == Some(&name));
        self.objects.announce(self.trust.advertise, old, mine).await
    }

    /// Which of this replica's nodes trust all CAs, while there are two.
    fn acknowledged_here(&self) -> Option<Acknowledged> {
        self.held.as_ref()?.previous.as_ref()?;
        let hash = self.trust.directory.borrow().ca_hash();
        Some(Acknowledged::new(hash.0, self.trust.nodes.trusting(hash).into_iter()))
    }

    /// Reads the Secret and, as the leader, brings it on its way.
    async fn update_keys(&mut self, leads: bool, roll: &Roll, mine: Option<Acknowledged>) -> anyhow::Result<()> {
        let secret = self.objects.secret().await?;
        let found = match &secret {
            Some(secret) => {
                let keys = Keys::from_data(secret.data.as_ref().unwrap_or(&BTreeMap::new()));
                Some(keys.context("Secret sheave-ca can't be used; mend it, or delete it to get a new CA")?)
            }
            None => None,
        };
        let since = self.since(found.as_ref());
        if !leads {
            if let Some(keys) = found.and_then(|found| rotation::follow(found, self.held.as_ref(), since)) {
                self.held = Some(keys);
            }
            return Ok(());
        }
        let missing = self.unacknowledged(found.as_ref(), roll, mine);
        self.trust
            .metrics
            .ca_unacknowledged
            .set(i64::try_from(missing.as_ref().map_or(0, BTreeSet::len)).unwrap_or(i64::MAX));
        let acknowledged = missing.is_some_and(|missing| missing.is_empty());
        let facts = Facts { now: Timestamp::now().as_second(), since, acknowledged };
        match rotation::plan(found, self.held.as_ref(), facts).context("no CA can be made")? {
            Plan::Keep(keys) => self.held = Some(keys),
            Plan::Write(keys, why) => self.write(secret.as_ref(), keys, why).await?,
        }
        Ok(())
    }

    async fn write(&mut self, old: Option<&Secret>, keys: Keys, why: &'static str) -> anyhow::Result<()> {
        if self.objects.write_secret(old, &keys).await? {
            info!(reason = why, replacing = keys.previous.is_some(), "the CA in Secret sheave-ca was written");
            self.since(Some(&keys));
            self.held = Some(keys);
        }
        Ok(())
    }

    /// For how long the Secret has held what it holds.
    fn since(&mut self, found: Option<&Keys>) -> Duration {
        let signing = |keys: &Keys| matches!(keys.previous, Some(Previous::Signing(_)));
        let stage = found.map(|keys| format!("{}{}", signing(keys), keys.bundle())).unwrap_or_default();
        if stage != self.stage.0 {
            self.stage = (stage, Instant::now());
        }
        self.stage.1.elapsed()
    }

    /// The nodes that don't trust the CA that is being introduced, as far as replicas tell; none known before there is a list.
    fn unacknowledged(
        &self,
        found: Option<&Keys>,
        roll: &Roll,
        mine: Option<Acknowledged>,
    ) -> Option<BTreeSet<String>> {
        let found = found?;
        let Some(Previous::Signing(_)) = found.previous else { return None };
        let wanted = format!("{:032x}", content_hash(found.bundle().as_bytes()).0);
        let mine = mine.filter(|mine| mine.ca_hash == wanted && self.trust.publisher.is_ready())?;
        let others = roll.living.iter().filter_map(|replica| replica.acknowledged.as_ref());
        let same = others.filter(|other| other.ca_hash == mine.ca_hash);
        let known: BTreeSet<&String> = same.flat_map(|other| &other.nodes).chain(&mine.nodes).collect();
        let nodes = self.trust.publisher.nodes();
        Some(nodes.into_iter().filter(|node| !known.contains(&short_hash(node))).collect())
    }

    /// Shows a certificate of the right CA, and tells proxies.
    fn use_keys(&self, keys: &Keys, roll: &Roll) -> anyhow::Result<()> {
        self.trust.metrics.ca_expiry.set(keys.signer().not_after());
        if self
            .trust
            .serving
            .sign(keys.signer(), Instant::now())
            .context("this replica's certificate can't be signed")?
        {
            info!("this replica has a new certificate");
        }
        let addresses = roll.living.iter().map(|replica| replica.address).chain([self.trust.advertise]);
        let directory = Directory::new(addresses.collect(), keys.bundle());
        self.trust.directory.send_if_modified(|known| {
            let changed = **known != directory;
            if changed {
                *known = Arc::new(directory);
            }
            changed
        });
        Ok(())
    }

    async fn publish(&self, roll: &Roll) -> anyhow::Result<()> {
        let directory = self.trust.directory.borrow().clone();
        if directory.is_complete() && self.objects.publish(&directory).await? {
            info!(replicas = roll.living.len(), "ConfigMap sheave-discovery was written");
        }
        Ok(())
    }

    /// Counts what went wrong, and says it when it is something else than before.
    fn tell(&mut self, errors: &[anyhow::Error]) {
        let text = errors.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; ");
        if !errors.is_empty() {
            self.trust.metrics.trust_errors.inc();
        }
        if text != self.told {
            match text.as_str() {
                "" => info!("Secret, ConfigMap and Leases of discovery are as they should be again"),
                _ => warn!(
                    error = text,
                    "discovery's Secret, ConfigMap or Leases can't be kept; serving on, trying again"
                ),
            }
            self.told = text;
        }
    }
}
