//! The [`Loader`]: opening, probing and what it holds afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{HashMap, Map as AyaMap, MapData, MapError as AyaMapError, PerCpuArray};
use sheave_abi::{BackendRow, FrontendKey, FrontendRow, Map, SlotKey, SlotRow, TargetRow};

use crate::sys::Raw;
use crate::{Error, Flows, clean, links, object, paths};

/// What the hooks are attached to and set up with.
#[derive(Clone, Debug)]
pub struct Options {
    /// A mounted BPF file system; `sheave/` is made in it.
    pub bpffs: PathBuf,
    /// The node's cgroup: sockets of processes in it and below are translated.
    pub cgroup: PathBuf,
    /// The cookie of the node's own network namespace ([`crate::netns_cookie`] in the proxy), where loopback NodePorts answer.
    pub netns_cookie: u64,
    /// The bits that the proxy's own sockets carry; such sockets are never translated.
    pub own_mark: u32,
    /// Which bits of a socket's mark are compared with `own_mark`; 0 exempts no socket.
    pub own_mask: u32,
    /// Sizes of maps that are made. Those adopted keep theirs.
    pub sizes: Sizes,
}

/// How many rows maps are made for.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Addresses, ports and protocols that are Services'.
    pub frontends: u32,
    /// Endpoints, counted once for each Service port; half of it is for sets being swapped.
    pub slots: u32,
    /// Endpoints, counted once for each Service port.
    pub backends: u32,
    /// Service ports, counted once for each family.
    pub targets: u32,
    /// Unconnected UDP sockets times frontends they send to; the least recently used is forgotten beyond.
    pub flows: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            frontends: Map::FRONTENDS.entries,
            slots: Map::SLOTS.entries,
            backends: Map::BACKENDS.entries,
            targets: Map::TARGETS.entries,
            flows: Map::FLOWS.entries,
        }
    }
}

impl Sizes {
    /// As small as they get, for trying.
    const TINY: Self = Self { frontends: 1, slots: 1, backends: 1, targets: 1, flows: 64 };

    pub(crate) fn of_maps(&self) -> [(Map, u32); 6] {
        [
            (Map::FRONTENDS, self.frontends),
            (Map::SLOTS, self.slots),
            (Map::BACKENDS, self.backends),
            (Map::TARGETS, self.targets),
            (Map::FLOWS, self.flows),
            (Map::REPLIES, self.flows),
        ]
    }
}

type Table<K, V> = HashMap<MapData, Raw<K>, Raw<V>>;
type ById<V> = HashMap<MapData, u32, Raw<V>>;

/// The maps of the attached hooks. Dropping it changes nothing in the kernel.
pub struct Loader {
    pub(crate) frontends: Table<FrontendKey, FrontendRow>,
    pub(crate) slots: Table<SlotKey, SlotRow>,
    pub(crate) backends: ById<BackendRow>,
    pub(crate) targets: ById<TargetRow>,
    pub(crate) flows: Option<Flows>,
    pub(crate) stats: PerCpuArray<MapData, u64>,
    pub(crate) capacities: Vec<(Map, u32)>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("capacities", &self.capacities).finish_non_exhaustive()
    }
}

impl Loader {
    /// Whether [`Self::open`] has what it needs: the paths, the kernel's features, and the verifier's consent to every
    /// program. Changes nothing.
    ///
    /// # Errors
    /// The reason, as one line.
    pub fn probe(options: &Options) -> Result<(), Error> {
        check(options)?;
        let mut ebpf = object::load(options, &Sizes::TINY, None)?;
        object::verify(&mut ebpf).map(drop)
    }

    /// Attaches the hooks. Maps that are pinned are adopted with all they hold, and programs that are attached are replaced.
    /// Where nothing was pinned before, a failure leaves nothing behind.
    ///
    /// # Errors
    /// The reason, as one line.
    pub fn open(options: &Options) -> Result<Self, Error> {
        check(options)?;
        paths::check_version(&options.bpffs)?;
        let fresh = !paths::root(&options.bpffs).exists();
        let result = Self::attach(options);
        if fresh
            && result.is_err()
            && let Err(error) = clean(&options.bpffs)
        {
            tracing::warn!(%error, "what was pinned before the hooks failed to attach is left behind");
        }
        result
    }

    /// The rows about UDP sockets, for whoever sweeps them. Once.
    pub fn take_flows(&mut self) -> Option<Flows> {
        self.flows.take()
    }

    fn attach(options: &Options) -> Result<Self, Error> {
        let (maps, links) = (paths::maps(&options.bpffs), paths::links(&options.bpffs));
        fs::create_dir_all(&links).map_err(Error::path("making", &links))?;
        let mut ebpf = object::load(options, &options.sizes, Some(&maps))?;
        let loader = Self::of(&mut ebpf, &maps)?;
        for (name, program) in object::verify(&mut ebpf)? {
            links::attach(name, &program, &options.cgroup, &links)?;
        }
        Ok(loader)
    }

    fn of(ebpf: &mut Ebpf, pins: &Path) -> Result<Self, Error> {
        let mut capacities = Vec::new();
        for map in Map::ALL {
            capacities.push((map, check_map(ebpf, map, pins)?));
        }
        let room = |map| capacities.iter().find(|(other, _)| *other == map).map_or(0, |(_, entries)| *entries);
        Ok(Self {
            frontends: take(ebpf, Map::FRONTENDS)?,
            slots: take(ebpf, Map::SLOTS)?,
            backends: take(ebpf, Map::BACKENDS)?,
            targets: take(ebpf, Map::TARGETS)?,
            flows: Some(Flows {
                flows: take(ebpf, Map::FLOWS)?,
                replies: take(ebpf, Map::REPLIES)?,
                capacities: [room(Map::FLOWS), room(Map::REPLIES)],
            }),
            stats: take(ebpf, Map::STATS)?,
            capacities,
        })
    }
}

fn check(options: &Options) -> Result<(), Error> {
    paths::check_bpffs(&options.bpffs)?;
    paths::check_cgroup(&options.cgroup)?;
    object::check_permitted()
}

fn take<T: TryFrom<AyaMap, Error = AyaMapError>>(ebpf: &mut Ebpf, map: Map) -> Result<T, Error> {
    let data = ebpf.take_map(map.name).expect("sheave-abi names the maps of sheave-programs");
    T::try_from(data).map_err(|error| Error::load(map.name, &error))
}

/// Checks that a map, possibly an adopted one, is laid out as this version's, and returns how many rows it has room for.
fn check_map(ebpf: &Ebpf, map: Map, pins: &Path) -> Result<u32, Error> {
    let pin = pins.join(map.name);
    let info = aya::maps::MapInfo::from_pin(&pin).map_err(|error| Error::load(map.name, &error))?;
    let (key, row) = object::layout(map);
    if (info.key_size(), info.value_size()) != (key, row) {
        return Err(Error::ForeignMap { path: pin, key: info.key_size(), row: info.value_size() });
    }
    debug_assert!(ebpf.map(map.name).is_some(), "sheave-abi names the maps of sheave-programs");
    Ok(info.max_entries())
}
