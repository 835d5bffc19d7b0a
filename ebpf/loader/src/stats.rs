//! Reading what the programs counted, and how full the maps are.

use sheave_abi::{Counter, Map};

use crate::{Error, Loader};

/// Node-wide counters. They live as long as the pinned map, so a restart of the proxy doesn't set them back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    values: [u64; Counter::COUNT as usize],
}

impl Stats {
    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// Its rows.
    pub entries: u64,
    /// How many it has room for.
    pub capacity: u64,
}

impl Loader {
    /// The node-wide counters, over all CPUs.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        let mut stats = Stats::default();
        for (index, value) in (0..).zip(&mut stats.values) {
            let cpus = self.stats.get(&index, 0).map_err(|error| read(Map::STATS, &error))?;
            *value = cpus.iter().sum();
        }
        Ok(stats)
    }

    /// How many connections and UDP flows were pointed at a backend of a target, since the target was made. 0 for one that
    /// isn't there. Ids come from [`sheave_reconcile::Reconciler::targets`].
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn connections(&self, target: u32) -> Result<u64, Error> {
        match self.targets.get(&target, 0) {
            Ok(row) => Ok(row.0.connections),
            Err(aya::maps::MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(read(Map::TARGETS, &error)),
        }
    }

    /// How full the maps of Services are: their rows are as many as the reconciler says it wrote.
    pub fn fill(&self, usage: &sheave_reconcile::Usage) -> Vec<Fill> {
        let mut fill = Vec::new();
        for &(map, capacity) in &self.capacities {
            let entries = match map {
                Map::FRONTENDS => usage.frontends,
                Map::SLOTS => usage.slots,
                Map::BACKENDS => usage.backends,
                Map::TARGETS => usage.targets,
                _ => continue,
            };
            fill.push(Fill { map: map.name, entries: entries as u64, capacity: u64::from(capacity) });
        }
        fill
    }
}

fn read(map: Map, error: &aya::maps::MapError) -> Error {
    Error::Read { map: map.name, reason: error.to_string() }
}
