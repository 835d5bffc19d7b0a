//! Two controllers of one state folder, and a failure before the source is known.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::tests::config;
use crate::source::Closed;

/// Far more than it takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of a folder of manifests and a state folder below `top`.
fn config_in(top: &Path, socket: &Path) -> Config {
    let source = format!("dir:{}", top.join("manifests").display());
    std::fs::create_dir_all(top.join("manifests")).unwrap();
    let config = config(&["--source", &source, "--socket", socket.to_str().unwrap()]).unwrap();
    let state_dir = top.join("state");
    // Each controller of a test has a port of its own, as on machines of its own.
    let admin = "127.0.0.1:0".parse().unwrap();
    Config { admin_socket: socket.with_extension("admin"), state_dir, admin, ..config }
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<(anyhow::Result<()>, Option<StateLock>)>,
}

impl Running {
    fn start(config: Config) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (log_level, layer) = LogLevel::detached();
        Box::leak(layer); // the handle works only while its layer lives
        let task = tokio::spawn(async move {
            let mut lock = None;
            let stopped = async { stopped.await.unwrap() };
            let result = Controller::start_and_wait(config, log_level, stopped, &mut lock).await;
            (result, lock)
        });
        Self { stop, task }
    }

    /// Ends it as SIGTERM does.
    async fn end(self) -> Option<StateLock> {
        self.stop.send(()).unwrap();
        let (result, lock) = tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
        result.unwrap();
        lock
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

async fn appears(path: &Path) -> u64 {
    let look = async {
        loop {
            match inode(path) {
                Some(inode) => return inode,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap()
}

#[tokio::test]
async fn a_second_controller_takes_the_socket_when_the_first_has_ended() {
    let top = tempfile::tempdir().unwrap();
    let socket = top.path().join("discovery.sock");
    let first = Running::start(config_in(top.path(), &socket));
    let bound = appears(&socket).await;
    let second = Running::start(config_in(top.path(), &socket));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(inode(&socket), Some(bound), "the first one serves on");
    let lock = first.end().await;
    assert!(lock.is_some() && !socket.exists(), "{lock:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!socket.exists(), "the second waits until the first program is gone");
    drop(lock);
    appears(&socket).await;
    second.end().await;
    assert!(!socket.exists());
}

/// A source that is never reached.
struct Absent;

impl Source for Absent {
    async fn identify(&mut self) -> anyhow::Result<String> {
        anyhow::bail!("it is away")
    }

    async fn run(self, _feed: Feed) -> anyhow::Result<()> {
        match std::future::pending::<Result<Infallible, Closed>>().await {
            Ok(never) => match never {},
            Err(Closed) => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_fatal_task_ends_the_program_before_the_source_is_known() {
    let top = tempfile::tempdir().unwrap();
    let (serving, _served) = mpsc::channel(1);
    let config = config_in(top.path(), &top.path().join("discovery.sock"));
    let (mut controller, inlet, _questions) = Controller::new(config, serving);
    controller.tasks.fatal("discovery", async { anyhow::bail!("broken") });
    let ended = tokio::time::timeout(PATIENCE, controller.read(|| Absent, None, inlet)).await;
    let error = format!("{:#}", ended.expect("it ends").unwrap_err());
    assert!(error.contains("discovery") && error.contains("broken"), "{error}");
}
