//! The object that the build script made, and loading it.

use std::path::Path;

use aya::programs::{CgroupSockAddr, ProgramError, ProgramFd};
use aya::{Ebpf, EbpfLoader};
use sheave_abi::{
    BackendRow, ConnectionRow, FlowKey, FlowRow, FrontendKey, FrontendRow, Map, PeerRow, ReplyKey, ReplyRow, SlotKey,
    SlotRow, TargetRow, global, program,
};

use crate::{Error, Options, Sizes};

/// The programs, with their maps' definitions.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs.o"));

/// Makes the maps, or adopts those that are pinned in `pins`; None pins nothing.
pub(crate) fn load(options: &Options, sizes: &Sizes, pins: Option<&Path>) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    // The kernel's own type information serves relocations, which we have none of, and takes megabytes to read.
    loader.btf(None);
    loader
        .override_global(global::NODE_NETNS, &options.netns_cookie, true)
        .override_global(global::OWN_MARK, &options.own_mark, true)
        .override_global(global::OWN_MASK, &options.own_mask, true);
    for (map, entries) in sizes.of_maps() {
        loader.map_max_entries(map.name, entries);
    }
    if let Some(pins) = pins {
        for map in Map::ALL {
            loader.map_pin_path(map.name, pins.join(map.name));
        }
    }
    loader.load(OBJECT).map_err(|error| Error::load("the maps", &error))
}

/// Has the verifier check every program and keeps them all. By name, in the order of [`program::ALL`].
pub(crate) fn verify(ebpf: &mut Ebpf) -> Result<Vec<(&'static str, ProgramFd)>, Error> {
    program::ALL.iter().map(|name| Ok((*name, verify_one(ebpf, name)?))).collect()
}

fn verify_one(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd, Error> {
    let program = ebpf.program_mut(name).expect("sheave-abi names the entry points of sheave-programs");
    let hook: &mut CgroupSockAddr = program.try_into().map_err(|error: ProgramError| Error::load(name, &error))?;
    hook.load().map_err(|error| Error::load(name, &error))?;
    let fd = hook.fd().map_err(|error| Error::load(name, &error))?;
    fd.try_clone().map_err(|error| Error::load(name, &error))
}

/// Whether this process may use BPF at all, found out by a map that would fit anywhere.
pub(crate) fn check_permitted() -> Result<(), Error> {
    let Err(error) = aya::maps::Array::<aya::maps::MapData, u32>::create(1, 0) else { return Ok(()) };
    match crate::tables::errno(&error) {
        libc::ENOSYS => Err(Error::NoBpf),
        libc::EPERM | libc::EACCES => Err(Error::NotPermitted),
        _ => Err(Error::load("a map", &error)),
    }
}

/// Bytes of a map's keys and rows.
pub(crate) fn layout(map: Map) -> (u32, u32) {
    let of = |key: usize, row: usize| (key as u32, row as u32);
    match map {
        Map::FRONTENDS => of(size_of::<FrontendKey>(), size_of::<FrontendRow>()),
        Map::SLOTS => of(size_of::<SlotKey>(), size_of::<SlotRow>()),
        Map::BACKENDS => of(size_of::<u32>(), size_of::<BackendRow>()),
        Map::TARGETS => of(size_of::<u32>(), size_of::<TargetRow>()),
        Map::CONNECTIONS => of(size_of::<u32>(), size_of::<ConnectionRow>()),
        Map::FLOWS => of(size_of::<FlowKey>(), size_of::<FlowRow>()),
        Map::REPLIES => of(size_of::<ReplyKey>(), size_of::<ReplyRow>()),
        Map::PEERS => of(size_of::<i32>(), size_of::<PeerRow>()),
        _ => of(size_of::<u32>(), size_of::<u64>()), // stats
    }
}
