//! `sheave-proxy clean`: takes everything of ours off this node. Doing it twice is doing it once.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::NodeConfig;
use crate::lock::{self, Attempt};
use crate::{datapath, refused};

/// Cleans. 0 where nothing of ours is left, 1 where something could not be removed, 2 where a proxy still runs here.
pub(crate) fn clean(node: &NodeConfig) -> anyhow::Result<ExitCode> {
    let lock = match lock::attempt(&node.state_dir) {
        Ok(Attempt::Ours(lock)) => lock,
        Ok(Attempt::HeldBy(holder)) => {
            let who = holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            return Ok(refused(&format!("{who} serves this node; end it first, then clean")));
        }
        Err(error) => return Ok(refused(&error.to_string())),
    };
    // Each step is done whether or not another could be, so that as little as possible stays.
    let mut errors = datapath::clean(node);
    errors.extend(lock::remove_files(&files(node)));
    drop(lock);
    if !errors.is_empty() {
        let lines: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
        anyhow::bail!("something of ours is left: {}", lines.join("; "));
    }
    tracing::info!(node = node.name, "nothing of ours is left in this node's kernel");
    Ok(ExitCode::SUCCESS)
}

/// All that a proxy keeps on disk, but for the lock.
fn files(node: &NodeConfig) -> Vec<PathBuf> {
    let kept = [node.snapshot_path(), node.directory_path()];
    // Both are written beside their place, and set aside where they are damaged.
    let kept = kept.into_iter().flat_map(|path| [path.with_extension("part"), path.with_extension("damaged"), path]);
    let mut half_made = node.admin_socket.as_os_str().to_owned();
    half_made.push(".new");
    kept.chain([node.admin_socket.clone(), half_made.into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, NodeArgs, tests::parse};
    use std::path::Path;

    fn node(state: &Path, extra: &[&str]) -> NodeConfig {
        let flags: Vec<_> = ["--controller=unix:/x"].iter().chain(extra).copied().collect();
        let Command::Run(run) = parse(&flags).unwrap().command else { panic!("not run") };
        NodeConfig::try_from(NodeArgs { state_dir: state.to_owned(), ..run.node }).unwrap()
    }

    #[test]
    fn of_all_that_a_proxy_keeps_only_the_lock_stays() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path(), &[]);
        let _lock = lock::attempt(dir.path()).unwrap();
        for kept in ["snapshot", "discovery"] {
            for name in [kept.to_owned(), format!("{kept}.part"), format!("{kept}.damaged")] {
                std::fs::write(dir.path().join(name), "").unwrap();
            }
        }
        for socket in ["admin.sock", "admin.sock.new"] {
            std::os::unix::net::UnixListener::bind(dir.path().join(socket)).unwrap();
        }
        assert!(lock::remove_files(&files(&node)).is_empty());
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }

    #[test]
    fn a_file_that_cannot_be_removed_keeps_no_other_and_the_socket_goes_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (dir.path().join("state"), dir.path().join("elsewhere.sock"));
        std::fs::create_dir(&state).unwrap();
        let flag = format!("--admin-socket={}", socket.display());
        let node = node(&state, &[&flag]);
        // Not a file, so it can't be removed as one.
        std::fs::create_dir(state.join("snapshot")).unwrap();
        std::fs::write(state.join("snapshot.part"), "").unwrap();
        std::fs::write(&socket, "").unwrap();

        let errors = lock::remove_files(&files(&node));
        assert_eq!(errors.len(), 1);
        assert!(format!("{:#}", errors[0]).contains("snapshot"));
        assert!(!socket.exists() && !state.join("snapshot.part").exists());
    }
}
