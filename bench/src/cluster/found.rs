//! What one round found, as it travels from the cluster's world to the table.

use anyhow::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Part;

/// Who serves Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arm {
    /// We.
    Sheave,
    /// kube-proxy in nftables mode.
    KubeProxyNftables,
}

impl Arm {
    /// In the order of each pair of rounds.
    pub(crate) const BOTH: [Self; 2] = [Self::Sheave, Self::KubeProxyNftables];

    /// As `tests/cluster/up` and the command line know it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sheave => "sheave",
            Self::KubeProxyNftables => "kube-proxy-nftables",
        }
    }

    /// Namespace and name of its DaemonSet.
    pub(crate) const fn daemon_set(self) -> (&'static str, &'static str) {
        match self {
            Self::Sheave => ("sheave-system", "sheave-proxy"),
            Self::KubeProxyNftables => ("kube-system", "kube-proxy"),
        }
    }
}

/// One part of a round: what it found or why it found nothing, and how long that took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Timed<T> {
    /// Seconds.
    pub(crate) seconds: f64,
    /// What it found.
    pub(crate) result: Result<T, String>,
}

/// A load or held connections while something was done to them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Served {
    /// How many there were.
    pub(crate) all: u64,
    /// How many failed.
    pub(crate) failed: u64,
    /// The first failures, in words.
    pub(crate) failures: Vec<String>,
    /// The slowest, in milliseconds.
    pub(crate) longest: f64,
}

impl Served {
    /// Takes another's numbers in.
    pub(crate) fn add(&mut self, other: Self) {
        self.all += other.all;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.longest = self.longest.max(other.longest);
    }
}

/// A rolling update of the proxies.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Update {
    /// New connections.
    pub(crate) new: Served,
    /// Held ones.
    pub(crate) held: Served,
    /// Seconds that each update took.
    pub(crate) took: Vec<f64>,
}

/// What a proxy uses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Resident memory, MiB.
    pub(crate) resident: f64,
    /// What else is worth knowing of its memory.
    pub(crate) note: String,
    /// Percent of one core.
    pub(crate) core: f64,
}

/// What a round found. Parts that nobody wanted are missing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Seconds from the start of everything until CoreDNS was ready.
    pub(crate) start: Option<Timed<f64>>,
    /// Each node's proxy.
    pub(crate) idle: Option<Timed<Vec<Idle>>>,
    /// Seconds from a node's readiness to the first connection there.
    pub(crate) join: Option<Timed<f64>>,
    /// A rolling update of the proxies, and back.
    pub(crate) update: Option<Timed<Update>>,
    /// Connections while a Deployment was rolled over.
    pub(crate) rollout: Option<Timed<Served>>,
    /// Milliseconds of each change.
    pub(crate) changes: Option<Timed<Vec<f64>>>,
}

impl Found {
    /// A round in which none of these parts could be measured.
    pub(crate) fn failed(parts: &[Part], error: &Error) -> Self {
        fn lost<T>(parts: &[Part], part: Part, error: &Error) -> Option<Timed<T>> {
            parts.contains(&part).then(|| Timed { seconds: 0.0, result: Err(format!("{error:#}")) })
        }
        Self {
            start: lost(parts, Part::Start, error),
            idle: lost(parts, Part::Idle, error),
            join: lost(parts, Part::Join, error),
            update: lost(parts, Part::Update, error),
            rollout: lost(parts, Part::Rollout, error),
            changes: lost(parts, Part::Changes, error),
        }
    }
}

/// A round of one arm.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    /// Who served Services.
    pub(crate) arm: Arm,
    /// What was found.
    pub(crate) found: Found,
}
