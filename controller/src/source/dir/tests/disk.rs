//! The task on a real disk: inotify, atomic renames, links as ConfigMap mounts have them, a folder that goes and comes back.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::*;
use crate::metrics::Metrics;
use crate::source::dir::{DirConfig, DirSource};
use crate::source::{Batch, Feed, Relist, Source};

/// Far more than a change takes, so that only a lost one fails.
const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    batches: mpsc::Receiver<Batch>,
    relist: Arc<Relist>,
    metrics: Arc<Metrics>,
    index: Index,
    problems: Vec<String>,
    ended: Vec<Kind>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(root: &Path, state: &Path) -> Self {
        let metrics = Arc::new(Metrics::new());
        let (feed, batches, relist) = Feed::new(metrics.clone());
        let config = DirConfig {
            path: root.to_owned(),
            state_dir: state.to_owned(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            node_ports: 30_000..=30_099,
        };
        let task = tokio::spawn(DirSource::new(config).run(feed));
        Self { batches, relist, metrics, index: Index::default(), problems: Vec::new(), ended: Vec::new(), task }
    }

    /// Takes batches until something is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let batch = tokio::time::timeout(left, self.batches.recv()).await;
            let batch = batch.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}; {:?}", self.problems));
            for event in batch.expect("the source lives").events {
                self.take(event);
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::BeginResync(kind) => self.index.begin_resync(kind),
            Event::Apply(object) => drop(self.index.apply(object)),
            Event::Delete(key) => drop(self.index.delete(&key)),
            Event::EndResync(kind, version) => {
                self.ended.push(kind);
                self.index.end_resync(kind, version);
            }
            Event::Seen(kind, version) => self.index.seen(kind, version),
            Event::Problems(lines) => self.problems = lines,
            Event::Heard(_) => {}
        }
    }

    fn services(&self) -> usize {
        self.index.len(Kind::Service)
    }

    fn external_ip(&self, name: &str) -> Option<String> {
        let key = ResourceKey::Service(ServiceKey::new("default", name));
        match self.index.compute(&key)? {
            sheave_model::Resource::Service(service) => service.external_ips.first().map(ToString::to_string),
            _ => None,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn with_ip(name: &str, last: u8) -> String {
    service(name, &format!("  externalIPs: [192.0.2.{last}]\n"))
}

#[tokio::test]
async fn files_that_are_written_renamed_and_removed_are_followed() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(root.path().join("a.yaml"), with_ip("a", 1)).unwrap();
    let mut run = Running::start(root.path(), state.path());
    run.until("the first lists", |run| run.ended == Kind::ALL && run.services() == 1).await;
    fs::write(root.path().join("a.yaml"), with_ip("a", 2)).unwrap();
    run.until("a write in place", |run| run.external_ip("a").as_deref() == Some("192.0.2.2")).await;
    fs::write(root.path().join(".part"), with_ip("a", 3)).unwrap();
    fs::rename(root.path().join(".part"), root.path().join("a.yaml")).unwrap();
    run.until("an atomic rename", |run| run.external_ip("a").as_deref() == Some("192.0.2.3")).await;
    fs::create_dir_all(root.path().join("x/y")).unwrap();
    fs::write(root.path().join("x/y/b.yaml"), with_ip("b", 1)).unwrap();
    run.until("a file in a new folder", |run| run.services() == 2).await;
    fs::write(root.path().join("x/y/b.yaml"), with_ip("b", 2)).unwrap();
    run.until("a write in a new folder", |run| run.external_ip("b").as_deref() == Some("192.0.2.2")).await;
    fs::rename(root.path().join("x"), root.path().join("z")).unwrap();
    fs::write(root.path().join("z/y/b.yaml"), with_ip("b", 3)).unwrap();
    run.until("a folder that was renamed", |run| run.external_ip("b").as_deref() == Some("192.0.2.3")).await;
    fs::remove_file(root.path().join("a.yaml")).unwrap();
    run.until("a removed file", |run| run.services() == 1).await;
    fs::remove_dir_all(root.path().join("z")).unwrap();
    run.until("a removed folder", |run| run.services() == 0).await;
}

#[tokio::test]
async fn links_that_are_swapped_as_config_maps_do_are_followed() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let version = |n: u8| {
        let dir = root.path().join(format!("..v{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), with_ip("a", n)).unwrap();
        symlink(format!("..v{n}"), root.path().join("..data_tmp")).unwrap();
        fs::rename(root.path().join("..data_tmp"), root.path().join("..data")).unwrap();
    };
    version(1);
    symlink("..data/a.yaml", root.path().join("a.yaml")).unwrap();
    let mut run = Running::start(root.path(), state.path());
    run.until("the first version", |run| run.external_ip("a").as_deref() == Some("192.0.2.1")).await;
    for n in 2..5 {
        version(n);
        fs::remove_dir_all(root.path().join(format!("..v{}", n - 1))).unwrap();
        run.until("a swap", |run| run.external_ip("a") == Some(format!("192.0.2.{n}"))).await;
    }
    assert_eq!(run.services(), 1);
}

#[tokio::test]
async fn a_folder_that_disappears_keeps_its_last_state_until_it_comes_back() {
    let (top, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = top.path().join("folder");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), with_ip("a", 1)).unwrap();
    let mut run = Running::start(&root, state.path());
    run.until("the first lists", |run| run.ended == Kind::ALL).await;
    fs::rename(&root, top.path().join("away")).unwrap();
    run.until("a line about it", |run| !run.problems.is_empty()).await;
    assert!(run.problems.len() == 1 && run.problems[0].contains("can't be listed"), "{:?}", run.problems);
    assert_eq!((run.services(), run.external_ip("a").as_deref()), (1, Some("192.0.2.1")));
    assert_eq!(run.metrics.objects_rejected.with_label_values(&["unknown"]).get(), 1);
    fs::create_dir(&root).unwrap();
    fs::write(root.join("b.yaml"), with_ip("b", 1)).unwrap();
    run.until("the folder that came back", |run| run.problems.is_empty()).await;
    run.until("its content", |run| run.external_ip("b").is_some() && run.services() == 1).await;
    fs::write(root.join("b.yaml"), with_ip("b", 2)).unwrap();
    run.until("a change after that", |run| run.external_ip("b").as_deref() == Some("192.0.2.2")).await;
}

#[tokio::test]
async fn a_broken_file_is_counted_and_logged_once_and_forgotten_when_mended() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(root.path().join("a.yaml"), with_ip("a", 1)).unwrap();
    fs::write(root.path().join("bad.yaml"), "kind: [").unwrap();
    let mut run = Running::start(root.path(), state.path());
    run.until("a line about it", |run| run.ended == Kind::ALL && run.problems.len() == 1).await;
    assert_eq!(run.services(), 1);
    fs::write(root.path().join("a.yaml"), with_ip("a", 2)).unwrap();
    run.until("another file", |run| run.external_ip("a").as_deref() == Some("192.0.2.2")).await;
    assert_eq!(run.metrics.objects_rejected.with_label_values(&["unknown"]).get(), 1);
    fs::remove_file(root.path().join("bad.yaml")).unwrap();
    run.until("it is mended", |run| run.problems.is_empty()).await;
}

#[tokio::test]
async fn a_list_that_is_wished_for_is_sent_and_names_everything() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(root.path().join("a.yaml"), with_ip("a", 1)).unwrap();
    let mut run = Running::start(root.path(), state.path());
    run.until("the first lists", |run| run.ended == Kind::ALL).await;
    run.ended.clear();
    run.relist.request(Kind::Service);
    run.until("one more list", |run| run.ended == [Kind::Service]).await;
    assert_eq!(run.services(), 1);
}

#[tokio::test]
async fn the_source_keeps_its_id_and_never_goes_back_in_time() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(root.path().join("a.yaml"), with_ip("a", 1)).unwrap();
    let mut views = Vec::new();
    for _ in 0..3 {
        let mut run = Running::start(root.path(), state.path());
        run.until("the first lists", |run| run.ended == Kind::ALL).await;
        views.push(run.index.view()["Service"]);
    }
    assert!(views.windows(2).all(|pair| pair[0] <= pair[1]), "{views:?}");
    let id = |config: &Path| {
        let config = DirConfig {
            path: root.path().to_owned(),
            state_dir: config.to_owned(),
            service_cidrs: Vec::new(),
            node_ports: 1..=1,
        };
        DirSource::new(config)
    };
    let first = id(state.path()).identify().await.unwrap();
    assert_eq!(first, id(state.path()).identify().await.unwrap());
    let other = tempfile::tempdir().unwrap();
    assert_ne!(first, id(other.path()).identify().await.unwrap());
    assert_eq!(first.len(), 36);
}

#[tokio::test]
async fn a_folder_that_is_a_link_can_be_swapped() {
    let (top, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = top.path().join("current");
    for n in 1..4_u8 {
        let dir = top.path().join(format!("v{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), with_ip("a", n)).unwrap();
    }
    symlink("v1", &root).unwrap();
    let mut run = Running::start(&root, state.path());
    run.until("the first version", |run| run.external_ip("a").as_deref() == Some("192.0.2.1")).await;
    for n in 2..4_u8 {
        symlink(format!("v{n}"), top.path().join("next")).unwrap();
        fs::rename(top.path().join("next"), &root).unwrap();
        run.until("a swap", |run| run.external_ip("a") == Some(format!("192.0.2.{n}"))).await;
    }
    fs::write(top.path().join("v3/a.yaml"), with_ip("a", 9)).unwrap();
    run.until("a write behind the link", |run| run.external_ip("a").as_deref() == Some("192.0.2.9")).await;
}

#[tokio::test]
async fn a_folder_that_is_removed_with_its_files_keeps_its_last_state() {
    let (top, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = top.path().join("folder");
    fs::create_dir(&root).unwrap();
    for n in 1..=10_u8 {
        fs::write(root.join(format!("{n}.yaml")), with_ip(&format!("s{n}"), n)).unwrap();
    }
    let mut run = Running::start(&root, state.path());
    run.until("the first lists", |run| run.ended == Kind::ALL && run.services() == 10).await;
    fs::remove_dir_all(&root).unwrap();
    run.until("a line about it", |run| !run.problems.is_empty()).await;
    assert_eq!(run.services(), 10);
}

#[tokio::test]
async fn a_folder_that_appears_late_is_listed_when_it_is_copied() {
    let (top, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = top.path().join("folder");
    let mut run = Running::start(&root, state.path());
    run.until("a line about it", |run| !run.problems.is_empty()).await;
    let copying = root.clone();
    let copy = tokio::spawn(async move {
        fs::create_dir(&copying).unwrap();
        for n in 1..=12_u8 {
            let dir = copying.join(format!("d{}", n / 4));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("{n}.yaml")), with_ip(&format!("s{n}"), n)).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    run.until("the first lists", |run| run.ended == Kind::ALL).await;
    assert_eq!(run.services(), 12, "nothing that was on its way is missing");
    copy.await.unwrap();
}
