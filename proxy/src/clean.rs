//! `sheave-proxy clean`: takes everything of ours off this node. Doing it twice is doing it once.

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
    datapath::clean(node)?;
    let files = ["snapshot", "snapshot.part", "snapshot.damaged", "admin.sock", "admin.sock.new"];
    lock::remove_files(&files.map(|name| node.state_dir.join(name)))?;
    drop(lock);
    tracing::info!(node = node.name, "nothing of ours is left in this node's kernel");
    Ok(ExitCode::SUCCESS)
}
