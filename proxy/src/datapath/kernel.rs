//! The socket hooks of this node: `sheave-loader` with this program's flags and errors.

use std::time::Duration;

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

/// Tries to open before a machine counts as one that can't, and the wait between two.
const TRIES: (u32, Duration) = (4, Duration::from_millis(500));

/// Attaches the hooks, or takes over those of an earlier process, and reads what their maps hold.
pub(super) fn open(node: &NodeConfig) -> anyhow::Result<(Loader, Restored)> {
    let options = options(node).context("the network namespace has no cookie")?;
    Ok(open_once(&options)?)
}

/// [`open`] where the choice is this program's: an error that may pass is no reason to take away what forwards, nor are pins of
/// another version, which are replaced. New connections go to the listeners meanwhile, old ones go on.
pub(super) fn open_patiently(node: &NodeConfig) -> anyhow::Result<(Loader, Restored)> {
    let options = options(node).context("the network namespace has no cookie")?;
    let mut left = TRIES.0;
    loop {
        left -= 1;
        match open_once(&options) {
            Ok(opened) => return Ok(opened),
            Err(error) if left > 0 && error.is_of_others_pins() => {
                tracing::warn!(%error, "it is taken away and made anew");
                sheave_loader::clean(&options.bpffs)?;
            }
            Err(error) if left > 0 && error.may_pass() => {
                tracing::warn!(%error, "eBPF can't be used now; it is tried again");
                std::thread::sleep(TRIES.1);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_once(options: &Options) -> Result<(Loader, Restored), Error> {
    let loader = Loader::open(options)?;
    let restored = loader.restored()?;
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
