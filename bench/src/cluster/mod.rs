//! `sheave-bench cluster`: the limits that only a real cluster shows, with kube-proxy beside us.
//!
//! Two clusters (`tests/cluster/up`) in turn, one whose Services Sheave serves and one where kube-proxy does in its nftables
//! mode. Each round brings one up from nothing, starts this program once more inside its world ([`round`]), which measures
//! and says what it found, and takes the cluster down. [`rows`] makes the table out of all rounds.

mod changes;
mod found;
mod idle;
mod join;
mod objects;
mod rollout;
mod round;
mod rows;
mod scripts;
mod update;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use found::{Arm, Found, Round};
pub(crate) use round::Arguments;
pub(crate) use round::run as measure;
use rows::ROWS;

use crate::rows::{finish, say};

/// Rounds of each arm, where a row wants to be repeated.
const ROUNDS: usize = 3;

/// Something that a round measures, for one or more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// How long until CoreDNS is ready.
    Start,
    /// What a proxy uses while nothing happens.
    Idle,
    /// A node that comes.
    Join,
    /// A rolling update of the proxies.
    Update,
    /// A rolling update of a Deployment.
    Rollout,
    /// Endpoints that come and go.
    Changes,
}

impl Part {
    /// As it is named on the command line of a round.
    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Idle => "idle",
            Self::Join => "join",
            Self::Update => "update",
            Self::Rollout => "rollout",
            Self::Changes => "changes",
        }
    }

    /// In how many rounds of each arm it is measured. The long ones have enough in one: two nodes' minutes, thousands of
    /// connections.
    const fn rounds(self) -> usize {
        match self {
            Self::Start | Self::Join | Self::Changes => ROUNDS,
            Self::Idle | Self::Update | Self::Rollout => 1,
        }
    }
}

/// Measures every row whose name contains `pattern`, prints the table and writes the JSON.
pub(crate) fn run(json: &Path, pattern: &str) -> Result<ExitCode> {
    let start = Instant::now();
    let wanted: Vec<_> = ROWS.iter().filter(|row| row.limit.name.contains(pattern)).collect();
    let Some(rounds) = wanted.iter().map(|row| row.part.rounds()).max() else {
        bail!("no row's name contains {pattern:?}");
    };
    let scripts = scripts::Scripts::new()?;
    let mut all = Vec::new();
    for number in 0..rounds {
        for arm in Arm::BOTH {
            let mut parts: Vec<_> = wanted.iter().map(|row| row.part).filter(|part| number < part.rounds()).collect();
            parts.dedup();
            say(start, &format!("round {} of {rounds}, {}", number + 1, arm.name()));
            let found = scripts.round(arm, &parts).unwrap_or_else(|error| {
                say(start, &format!("failed: {error:#}"));
                Found::failed(&parts, &error)
            });
            all.push(Round { arm, found });
        }
    }
    let rows: Vec<_> = wanted.iter().map(|row| row.make(&all)).collect();
    finish(start, json, &rows)
}
