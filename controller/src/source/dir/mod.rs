//! A folder of ordinary Kubernetes YAML and JSON as a source, with the part that an API server plays behind it.
//!
//! `split` and `parse` read documents, `folder` knows which file gives which object, `desk` with `assign` and `allocate`
//! does what an API server would (versions, ages, ClusterIPs, NodePorts) and `state` remembers it: all of them pure. `scan`
//! and `watch` look at the disk, `keeper` puts both together, and here is the task that runs it.

mod allocate;
mod assign;
mod desk;
mod fault;
mod folder;
mod keeper;
mod parse;
mod scan;
mod split;
mod state;
#[cfg(test)]
mod tests;
mod watch;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use sheave_index::Kind;
use tokio::time::Instant;

use self::allocate::Pool;
use self::desk::Desk;
use self::keeper::{Keeper, Look, unix_seconds};
use self::state::{State, StateFile};
use self::watch::{Changes, Watcher};
use super::{Batch, Closed, Event, Feed, Source, unix_nanos};

/// Everything is looked at this often, for what no event tells: files behind links, file systems without inotify.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A folder that is not there is looked for this often.
const LOOK_FOR: Duration = Duration::from_millis(500);
/// A folder that came back is left alone until nothing has changed in it for this long, since whoever brings it back
/// copies files one by one.
const SETTLE: Duration = Duration::from_millis(300);

/// What to watch and what to assign from.
#[derive(Clone, Debug)]
pub(crate) struct DirConfig {
    /// The folder.
    pub(crate) path: PathBuf,
    /// Where versions, ages and addresses are remembered.
    pub(crate) state_dir: PathBuf,
    /// At most one of each family; the first is the primary one.
    pub(crate) service_cidrs: Vec<IpNet>,
    /// The NodePorts.
    pub(crate) node_ports: RangeInclusive<u16>,
}

/// The source.
pub(crate) struct DirSource {
    config: DirConfig,
    file: StateFile,
    state: Option<State>,
}

impl DirSource {
    /// Reads nothing yet.
    pub(crate) fn new(config: DirConfig) -> Self {
        let file = StateFile::new(&config.state_dir);
        Self { config, file, state: None }
    }

    fn load(&mut self) -> anyhow::Result<&State> {
        if self.state.is_none() {
            let place = || format!("state folder {}: make it readable and writable", self.config.state_dir.display());
            let (mut state, damage) = self.file.load(random_id).with_context(place)?;
            if let Some(line) = damage {
                tracing::warn!("{line}");
            }
            if state.changed {
                self.file.save(&mut state).with_context(place)?;
            }
            self.state = Some(state);
        }
        self.state.as_ref().context("the state was loaded just before")
    }
}

impl Source for DirSource {
    async fn identify(&mut self) -> anyhow::Result<String> {
        Ok(self.load()?.source.clone())
    }

    async fn run(mut self, feed: Feed) -> anyhow::Result<()> {
        let state = self.load()?.clone();
        let pool = Pool::new(self.config.service_cidrs.clone(), self.config.node_ports.clone());
        let keeper = Keeper::new(&self.config.path, Desk::new(state, pool), self.file);
        let watcher = Watcher::new(&self.config.path)
            .inspect_err(|error| {
                tracing::warn!(
                    "{}: no inotify ({error}); changes are found every {} s, raise fs.inotify.max_user_instances",
                    self.config.path.display(),
                    LOOK_EVERY.as_secs()
                );
            })
            .ok();
        let mut task = Task { keeper: Some(keeper), watcher, feed, lost: false };
        match task.run().await {
            Err(Closed) => Ok(()),
            Ok(never) => match never {},
        }
    }
}

struct Task {
    /// Out only while a look is under way on a thread that may block.
    keeper: Option<Keeper>,
    watcher: Option<Watcher>,
    feed: Feed,
    /// The folder was not there at the last look.
    lost: bool,
}

/// Why the task wakes up.
enum Wake {
    Changed(Changes),
    Relist(Kind),
    Time,
}

impl Task {
    async fn run(&mut self) -> Result<std::convert::Infallible, Closed> {
        let everything = Changes { everything: true, ..Changes::default() };
        let mut look = self.look(everything).await;
        while look.lost {
            self.report(&look);
            self.feed.listed(problems(&mut look)).await?;
            while !self.keeper().is_there() {
                tokio::time::sleep(LOOK_FOR).await;
            }
            let changes = self.settle().await;
            look = self.look(changes).await;
        }
        self.report(&look);
        tracing::info!(objects = self.keeper().len(), "the folder is read");
        for list in self.keeper().lists(&Kind::ALL) {
            self.feed.listed(list).await?;
        }
        self.feed.listed(problems(&mut look)).await?;
        loop {
            match self.wake().await {
                Wake::Changed(changes) => self.changed(changes).await?,
                Wake::Relist(kind) => {
                    self.changed(Changes { everything: true, ..Changes::default() }).await?;
                    for list in self.keeper().lists(&[kind]) {
                        self.feed.listed(list).await?;
                    }
                }
                Wake::Time => self.changed(Changes { everything: true, ..Changes::default() }).await?,
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let pause = if self.lost { LOOK_FOR } else { LOOK_EVERY };
        let watched = async {
            match &mut self.watcher {
                Some(watcher) => watcher.next().await,
                None => std::future::pending().await,
            }
        };
        let relists = Kind::ALL.map(|kind| {
            let feed = &self.feed;
            Box::pin(async move {
                feed.relist_wanted(kind).await;
                kind
            })
        });
        tokio::select! {
            changes = watched => match changes {
                Ok(changes) => Wake::Changed(changes),
                Err(error) => {
                    tracing::warn!("inotify failed: {error}; everything is looked at every {} s", LOOK_EVERY.as_secs());
                    self.watcher = None;
                    Wake::Time
                }
            },
            (kind, _, _) = futures::future::select_all(relists) => Wake::Relist(kind),
            () = tokio::time::sleep(pause) => Wake::Time,
        }
    }

    /// Takes in changes and tells them.
    async fn changed(&mut self, changes: Changes) -> Result<(), Closed> {
        let observed_unix_nanos = unix_nanos();
        if self.lost && !self.keeper().is_there() {
            // Still gone: nothing to say that has not been said.
            return self.feed.listed(vec![Event::Heard(None)]).await;
        }
        let changes = if self.lost { self.settle().await } else { changes };
        let mut look = self.look(changes).await;
        self.report(&look);
        if !look.lost {
            look.events.push(Event::Heard(None));
        }
        self.feed.send(Batch { events: look.events, observed_unix_nanos }).await
    }

    /// Waits until a folder that came, or came back, has been left alone for a moment. Returns what has changed meanwhile.
    async fn settle(&mut self) -> Changes {
        let deadline = Instant::now() + 10 * SETTLE;
        let mut all = Changes { everything: true, ..Changes::default() };
        let mut grown = true;
        while Instant::now() < deadline {
            if grown {
                let dirs = self.keeper().dirs();
                self.follow(&dirs);
            }
            let Some(watcher) = &mut self.watcher else {
                tokio::time::sleep(SETTLE).await;
                break;
            };
            match tokio::time::timeout(SETTLE, watcher.next()).await {
                Ok(Ok(mut changes)) => {
                    grown = changes.everything;
                    all.files.append(&mut changes.files);
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        all
    }

    /// Looks until the folders that are watched are those that were looked at.
    async fn look(&mut self, mut changes: Changes) -> Look {
        let mut all = Look::default();
        loop {
            let mut look = self.look_once(changes).await;
            all.events.append(&mut look.events);
            all.news.append(&mut look.news);
            all.lost = look.lost;
            self.lost = look.lost;
            if !look.dirs.is_some_and(|dirs| self.follow(&dirs)) {
                return all;
            }
            changes = Changes { everything: true, ..Changes::default() };
        }
    }

    async fn look_once(&mut self, changes: Changes) -> Look {
        let Some(mut keeper) = self.keeper.take() else { return Look::default() };
        let done = tokio::task::spawn_blocking(move || {
            let look = keeper.look(&changes, unix_seconds());
            (keeper, look)
        });
        let (keeper, look) = match done.await {
            Ok(done) => done,
            // A panic in there is a panic of this task, which is supervised.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.keeper = Some(keeper);
        look
    }

    /// Watches these folders. Returns whether one of them is new.
    fn follow(&mut self, dirs: &std::collections::BTreeSet<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        watcher.follow(dirs).unwrap_or_else(|error| {
            tracing::warn!("not every folder can be watched: {error}; raise fs.inotify.max_user_watches");
            false
        })
    }

    fn keeper(&self) -> &Keeper {
        self.keeper.as_ref().expect("the keeper is here, because looks are awaited to their end")
    }

    /// Logs and counts what is newly wrong.
    fn report(&self, look: &Look) {
        for fault in &look.news {
            tracing::warn!("{fault}");
            let kind = if fault.kind.is_empty() { "unknown" } else { &fault.kind };
            self.feed.metrics.objects_rejected.with_label_values(&[kind]).inc();
        }
    }
}

/// The part of a look that is no object.
fn problems(look: &mut Look) -> Vec<Event> {
    let mut events = std::mem::take(&mut look.events);
    events.retain(|event| matches!(event, Event::Problems(_)));
    events
}

/// A random UUID (RFC 9562, version 4).
fn random_id() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
