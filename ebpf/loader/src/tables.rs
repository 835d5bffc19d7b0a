//! Rows to and from the maps: what the reconciler writes, and what it starts from.

use std::io;

use aya::maps::{HashMap, MapData, MapError as AyaMapError};
use aya::sys::SyscallError;
use sheave_abi::Map;
use sheave_reconcile::{MapError, MapOp, Maps, Restored};

use crate::sys::Raw;
use crate::{Error, Loader};

impl Loader {
    /// Everything in the maps: what [`sheave_reconcile::Reconciler::new`] starts from. Empty after a first start.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn restored(&self) -> Result<Restored, Error> {
        Ok(Restored {
            targets: rows(Map::TARGETS, &self.targets)?.map(|(id, row)| (id, row.0)).collect(),
            frontends: rows(Map::FRONTENDS, &self.frontends)?.map(|(key, row)| (key.0, row.0)).collect(),
            slots: rows(Map::SLOTS, &self.slots)?.map(|(key, row)| (key.0, row.0)).collect(),
            backends: rows(Map::BACKENDS, &self.backends)?.map(|(id, row)| (id, row.0)).collect(),
        })
    }

    fn capacity(&self, map: Map) -> u32 {
        self.capacities.iter().find(|(other, _)| *other == map).map_or(map.entries, |(_, entries)| *entries)
    }
}

/// All rows of a map that nobody else writes.
fn rows<K: aya::Pod, V: aya::Pod>(
    map: Map,
    table: &HashMap<MapData, K, V>,
) -> Result<std::vec::IntoIter<(K, V)>, Error> {
    let read = |error: AyaMapError| Error::Read { map: map.name, reason: error.to_string() };
    let rows: Result<Vec<_>, _> = table.iter().collect();
    Ok(rows.map_err(read)?.into_iter())
}

impl Maps for Loader {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        let (map, result) = match *op {
            MapOp::PutTarget { id, row } => (Map::TARGETS, self.targets.insert(id, Raw(row), 0)),
            MapOp::PutBackend { id, row } => (Map::BACKENDS, self.backends.insert(id, Raw(row), 0)),
            MapOp::PutSlot { key, row } => (Map::SLOTS, self.slots.insert(Raw(key), Raw(row), 0)),
            MapOp::PutFrontend { key, row } => (Map::FRONTENDS, self.frontends.insert(Raw(key), Raw(row), 0)),
            MapOp::DeleteFrontend { key } => (Map::FRONTENDS, gone(self.frontends.remove(&Raw(key)))),
            MapOp::DeleteSlot { key } => (Map::SLOTS, gone(self.slots.remove(&Raw(key)))),
            MapOp::DeleteBackend { id, .. } => (Map::BACKENDS, gone(self.backends.remove(&id))),
            MapOp::DeleteTarget { id } => (Map::TARGETS, gone(self.targets.remove(&id))),
        };
        result.map_err(|error| match errno(&error) {
            libc::E2BIG | libc::ENOSPC => MapError::Full { map: map.name, capacity: self.capacity(map) },
            errno => MapError::Os { map: map.name, errno },
        })
    }
}

/// Deleting what isn't there is as good.
fn gone(result: Result<(), AyaMapError>) -> Result<(), AyaMapError> {
    match result {
        Err(AyaMapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == libc::ENOENT => Ok(()),
        result => result,
    }
}

/// What the kernel said; EINVAL where aya refused by itself.
pub(crate) fn errno(error: &AyaMapError) -> i32 {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        let call = error.downcast_ref::<SyscallError>().map(|error| &error.io_error);
        if let Some(errno) = io.or(call).and_then(io::Error::raw_os_error) {
            return errno;
        }
        cause = error.source();
    }
    libc::EINVAL
}
