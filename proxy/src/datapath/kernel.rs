//! The socket hooks of this node: `sheave-loader` with this program's flags and errors.

use anyhow::Context;
use sheave_abi::Counter;
use sheave_loader::{Error, Loader, Options, Sizes};
use sheave_reconcile::{Restored, Usage};

use super::scrape::{Fill, Kernel};
use crate::config::NodeConfig;

impl Kernel for Loader {
    fn counters(&self) -> anyhow::Result<Vec<(Counter, u64)>> {
        let stats = self.stats()?;
        Ok(Counter::ALL.into_iter().map(|counter| (counter, stats.get(counter))).collect())
    }

    fn connections(&self, target: u32) -> anyhow::Result<u64> {
        Ok(self.connections(target)?)
    }

    fn fill(&self, usage: &Usage) -> Vec<Fill> {
        self.fill(usage)
    }
}

fn options(node: &NodeConfig) -> std::io::Result<Options> {
    Ok(Options {
        bpffs: node.bpffs.clone(),
        cgroup: node.cgroup.clone(),
        netns_cookie: sheave_loader::netns_cookie()?,
        own_mark: node.mark_own,
        own_mask: node.mark_own,
        sizes: Sizes::default(),
    })
}

/// Attaches the hooks, or takes over those of an earlier process, and reads what their maps hold.
pub(super) fn open(node: &NodeConfig) -> anyhow::Result<(Loader, Restored)> {
    let loader = Loader::open(&options(node).context("the network namespace has no cookie")?)?;
    let restored = loader.restored().context("pinned maps can't be read")?;
    Ok((loader, restored))
}

/// Detaches all programs and removes all pins. Returns whether there were any.
pub(super) fn remove(node: &NodeConfig) -> anyhow::Result<bool> {
    let any = node.bpffs.join("sheave").exists();
    match sheave_loader::clean(&node.bpffs) {
        Ok(()) => Ok(any),
        // Nothing can be pinned where there is no such file system.
        Err(Error::NotBpffs { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
