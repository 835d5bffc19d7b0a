//! The calling socket and the maps, as `sheave-datapath` wants to see them.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_ANY, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use sheave_abi::{
    BackendRow, ConnectionRow, Counter, FlowKey, FlowRow, FrontendKey, FrontendRow, Map, PEER_FLOWS, PeerRow, ReplyKey,
    ReplyRow, SlotKey,
};
use sheave_datapath::{Env, Tables, Transport};

use crate::context;
use crate::maps::{
    BACKENDS, CONNECTIONS, FLOWS, FRONTENDS, NODE_NETNS, OWN_MARK, OWN_MASK, PEERS, REPLIES, SLOTS, STATS, TARGETS,
};

/// The socket whose call a program decides on.
pub struct Socket<'a> {
    ctx: &'a SockAddrContext,
}

impl<'a> Socket<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx }
    }

    /// Its protocol, if Services can have it.
    #[inline(always)]
    pub fn transport(&self) -> Option<Transport> {
        Transport::from_number(context::protocol(self.ctx))
    }

    /// Whether it is of UDP itself; UDP-Lite has the same hooks.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        matches!(self.transport(), Some(Transport::Udp))
    }

    #[inline(always)]
    fn sk(&self) -> *mut bpf_sock {
        // SAFETY: the context is valid while the program runs, and `sk` is the only member of the union.
        unsafe { (*self.ctx.sock_addr).__bindgen_anon_1.sk }
    }

    /// The socket's row, or null.
    #[inline(always)]
    fn row(&self) -> *mut PeerRow {
        // SAFETY: the kernel holds the socket while the program runs.
        unsafe { PEERS.get_ptr_mut(self.ctx) }
    }

    /// The socket's row, made of zeros where there is none; null without memory for it.
    #[inline(always)]
    fn row_or_new(&self) -> *mut PeerRow {
        // SAFETY: the kernel holds the socket while the program runs.
        unsafe { PEERS.get_or_insert_ptr_mut(self.ctx, None) }
    }
}

impl Tables for Socket<'_> {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendRow> {
        // SAFETY: rows of the maps without preallocation are replaced and never rewritten in place, but since 6.1 the memory of
        // one that was replaced serves the next row made on that CPU (kernel commit fba1a1c6c912) while it may still be read.
        // Reading twice notices: what differs is read a third time.
        unsafe {
            let row = FRONTENDS.get(key).copied()?;
            let again = FRONTENDS.get(key).copied()?;
            if row == again { Some(row) } else { FRONTENDS.get(key).copied() }
        }
    }

    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> Option<u32> {
        // SAFETY: as for frontends; whose backend is read then is looked at in its own row.
        unsafe { SLOTS.get(key).map(|row| row.backend) }
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<BackendRow> {
        // SAFETY: as for frontends; a row of another target is not taken.
        unsafe { BACKENDS.get(id).copied() }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowRow> {
        // SAFETY: an evicted row may be reused while it is read; whatever backend is read then must stand and belong to the
        // frontend's target, and the next datagram reads again.
        unsafe { FLOWS.get(key).copied() }
    }

    #[inline(always)]
    fn set_flow(&self, key: &FlowKey, row: &FlowRow) -> bool {
        FLOWS.insert(key, row, BPF_ANY.into()).is_ok()
    }

    #[inline(always)]
    fn reply(&self, key: &ReplyKey) -> Option<ReplyRow> {
        // SAFETY: an evicted row may be reused while it is read; one answer would then show another frontend, once.
        unsafe { REPLIES.get(key).copied() }
    }

    #[inline(always)]
    fn set_reply(&self, key: &ReplyKey, row: &ReplyRow) -> bool {
        REPLIES.insert(key, row, BPF_ANY.into()).is_ok()
    }

    #[inline(always)]
    fn connection(&self, cookie: u64) -> Option<ConnectionRow> {
        let row = CONNECTIONS.get_ptr(place(cookie))?;
        // SAFETY: rows of an array live as long as the map. One that is rewritten meanwhile has another cookie after it.
        let copy = unsafe { row.read_volatile() };
        let after = unsafe { (&raw const (*row).cookie).read_volatile() };
        (copy.cookie == cookie && after == cookie).then_some(copy)
    }

    #[inline(always)]
    fn set_connection(&self, row: &ConnectionRow) {
        let Some(stored) = CONNECTIONS.get_ptr_mut(place(row.cookie)) else { return };
        // SAFETY: as above. A reader that comes between sees no cookie.
        unsafe {
            (&raw mut (*stored).cookie).write_volatile(0);
            stored.write_volatile(ConnectionRow { cookie: 0, ..*row });
            (&raw mut (*stored).cookie).write_volatile(row.cookie);
        }
    }

    #[inline(always)]
    fn peer(&self) -> Option<PeerRow> {
        // SAFETY: the storage lives as long as the socket.
        unsafe { self.row().as_ref().copied() }
    }

    #[inline(always)]
    fn set_peer(&self, row: &PeerRow) -> bool {
        // SAFETY: as above; connect(), the only writer of the whole row, holds the socket's lock.
        let Some(stored) = (unsafe { self.row_or_new().as_mut() }) else { return false };
        *stored = *row;
        true
    }

    #[inline(always)]
    fn mark_flows(&self) -> bool {
        let row = self.row_or_new();
        if row.is_null() {
            return false;
        }
        // SAFETY: as above. Senders run side by side, but all of them set this one bit, in a store of its own.
        unsafe {
            let flags = &raw mut (*row).flags;
            flags.write_volatile(flags.read_volatile() | PEER_FLOWS);
        }
        true
    }

    #[inline(always)]
    fn forget_peer(&self) {
        // SAFETY: the kernel holds the socket while the program runs. A row that is gone already is as good.
        let _ = unsafe { PEERS.delete(self.sk()) };
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        if let Some(value) = STATS.get_ptr_mut(counter as u32) {
            // SAFETY: the value lives as long as the map, which the program holds.
            unsafe { add_one(value) };
        }
    }

    #[inline(always)]
    fn count_target(&self, target: u32) {
        if let Some(row) = TARGETS.get_ptr_mut(target) {
            // SAFETY: the row is freed after RCU.
            unsafe { add_one(&raw mut (*row).connections) };
        }
    }
}

/// Where in the array a socket's row is.
#[inline(always)]
fn place(cookie: u64) -> u32 {
    const { assert!(Map::CONNECTIONS.entries.is_power_of_two()) };
    cookie as u32 & (Map::CONNECTIONS.entries - 1)
}

/// Adds one, exactly: another task may run the same program on this CPU meanwhile (these hooks can be preempted), so even a
/// per-CPU counter needs it. The language has no atomic addition for this target, the machine has.
///
/// # Safety
/// `counter` points at a map's value that lives until the program ends.
#[inline(always)]
unsafe fn add_one(counter: *mut u64) {
    // SAFETY: the caller's promise; the instruction touches these eight bytes and no others.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1u64, options(nostack)) };
}

/// Whether an address, as the kernel has it, is of 127.0.0.0/8.
#[inline(always)]
const fn is_loopback_v4(address: u32) -> bool {
    address.to_ne_bytes()[0] == 127
}

impl Env for Socket<'_> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing and has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_socket_cookie(self.ctx.sock_addr.cast()) }
    }

    #[inline(always)]
    fn in_node_netns(&self) -> bool {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_netns_cookie(self.ctx.sock_addr.cast()) == NODE_NETNS.load() }
    }

    #[inline(always)]
    fn is_bound_to_loopback(&self) -> bool {
        const AF_INET: u32 = 2;
        const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];
        const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];
        let sk = self.sk();
        // SAFETY: the socket is held while the program runs; the verifier allows reading its family and source address.
        unsafe {
            if (&raw const (*sk).family).read_volatile() == AF_INET {
                return is_loopback_v4((&raw const (*sk).src_ip4).read_volatile());
            }
            let source: [u32; 4] = core::array::from_fn(|word| (&raw const (*sk).src_ip6[word]).read_volatile());
            source == LOOPBACK_V6 || (source[..3] == MAPPED && is_loopback_v4(source[3]))
        }
    }

    #[inline(always)]
    fn is_own(&self) -> bool {
        let mask = OWN_MASK.load();
        if mask == 0 {
            return false;
        }
        // SAFETY: the socket is held while the program runs; the verifier allows reading its mark.
        let mark = unsafe { (&raw const (*self.sk()).mark).read_volatile() };
        mark & mask == OWN_MARK.load()
    }
}
