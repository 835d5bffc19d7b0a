//! The rows that programs write about unconnected UDP sockets, walked from user space: counted, and swept of what is gone.

use std::net::SocketAddr;

use aya::maps::{HashMap, MapData};
use sheave_abi::{Address, FlowKey, FlowRow, Map, ReplyKey, ReplyRow};

use crate::Fill;
use crate::sys::Raw;

/// Those maps. A walk is a system call for each row, so tens of milliseconds when they are full: something for a thread of
/// its own. Programs go on writing meanwhile.
pub struct Flows {
    pub(crate) flows: HashMap<MapData, Raw<FlowKey>, Raw<FlowRow>>,
    pub(crate) replies: HashMap<MapData, Raw<ReplyKey>, Raw<ReplyRow>>,
    pub(crate) capacities: [u32; 2],
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flows").field("capacities", &self.capacities).finish_non_exhaustive()
    }
}

impl Flows {
    /// Deletes the rows whose frontend does not stand any more, and says how full the maps are then. Rows of sockets that
    /// are closed stay until newer ones push them out: nothing tells of a closed socket's end.
    pub fn sweep(&mut self, stands: impl Fn(SocketAddr) -> bool) -> [Fill; 2] {
        let [most, most_replies] = self.capacities;
        // A walk begins anew where the row it stands on is deleted, so it ends at the map's size.
        let rows: Vec<_> = self.flows.keys().take(most as usize).flatten().collect();
        let mut entries = rows.len() as u64;
        for key in rows {
            // One that can't be deleted has been pushed out meanwhile.
            if !stands(socket(key.0.address, key.0.port)) && self.flows.remove(&key).is_ok() {
                entries -= 1;
            }
        }
        let rows: Vec<_> = self.replies.iter().take(most_replies as usize).flatten().collect();
        let mut replies = rows.len() as u64;
        for (key, row) in rows {
            if !stands(socket(row.0.address, row.0.port)) && self.replies.remove(&key).is_ok() {
                replies -= 1;
            }
        }
        [
            Fill { map: Map::FLOWS.name, entries, capacity: most.into() },
            Fill { map: Map::REPLIES.name, entries: replies, capacity: most_replies.into() },
        ]
    }
}

fn socket(address: Address, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.to_ip(), u16::from_be_bytes(port))
}
