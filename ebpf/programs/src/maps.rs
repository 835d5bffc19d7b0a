//! The maps and globals, as `sheave-abi` names them. Sizes are defaults: the loader sets others before it makes the maps.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use sheave_abi::{
    BackendRow, ConnectionRow, FlowKey, FlowRow, FrontendKey, FrontendRow, Map, PeerRow, ReplyKey, ReplyRow, SlotKey,
    SlotRow, TargetRow,
};

/// Rows take memory when they are made.
const LAZY: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "frontends")]
pub static FRONTENDS: HashMap<FrontendKey, FrontendRow, { Map::FRONTENDS.entries as usize }, LAZY> = HashMap::new();

#[btf_map(name = "slots")]
pub static SLOTS: HashMap<SlotKey, SlotRow, { Map::SLOTS.entries as usize }, LAZY> = HashMap::new();

#[btf_map(name = "backends")]
pub static BACKENDS: HashMap<u32, BackendRow, { Map::BACKENDS.entries as usize }, LAZY> = HashMap::new();

#[btf_map(name = "targets")]
pub static TARGETS: HashMap<u32, TargetRow, { Map::TARGETS.entries as usize }, LAZY> = HashMap::new();

#[btf_map(name = "connections")]
pub static CONNECTIONS: Array<ConnectionRow, { Map::CONNECTIONS.entries as usize }> = Array::new();

#[btf_map(name = "flows")]
pub static FLOWS: LruHashMap<FlowKey, FlowRow, { Map::FLOWS.entries as usize }> = LruHashMap::new();

#[btf_map(name = "replies")]
pub static REPLIES: LruHashMap<ReplyKey, ReplyRow, { Map::REPLIES.entries as usize }> = LruHashMap::new();

#[btf_map(name = "peers")]
pub static PEERS: SkStorage<PeerRow> = SkStorage::new();

#[btf_map(name = "stats")]
pub static STATS: PerCpuArray<u64, { Map::STATS.entries as usize }> = PerCpuArray::new();

#[unsafe(no_mangle)]
pub static NODE_NETNS: Global<u64> = Global::new(0);

#[unsafe(no_mangle)]
pub static OWN_MARK: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
pub static OWN_MASK: Global<u32> = Global::new(0);
