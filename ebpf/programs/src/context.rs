//! Reading and writing `bpf_sock_addr`. The verifier wants each access to be of one field, at its full width, and with the
//! offset in the instruction: a pointer to a field, which the optimizer likes to make, is "a modified ctx ptr". So the
//! instructions are written out.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::programs::SockAddrContext;
use sheave_datapath::{Place, Verdict};

/// The call goes on.
pub const GO_ON: i32 = 1;
/// The call ends with the value that bpf_set_retval() left.
const STOP: i32 = 0;
/// errno of a refused connection, the same on every architecture that Linux has BPF for but MIPS and SPARC.
const ECONNREFUSED: i32 = 111;

/// Carries out a verdict on connect() and sendmsg().
#[inline(always)]
pub fn apply(ctx: &SockAddrContext, write: impl Fn(&SockAddrContext, &Place), verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Untouched => GO_ON,
        Verdict::Translate(place) => {
            write(ctx, &place);
            GO_ON
        }
        Verdict::Refuse => {
            // SAFETY: the helper takes a number and is offered to connect and sendmsg hooks (kernel 5.18).
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            STOP
        }
    }
}

/// Carries out a verdict on recvmsg() and getpeername(), which can't be refused: the verifier demands a 1.
#[inline(always)]
pub fn show(ctx: &SockAddrContext, write: impl Fn(&SockAddrContext, &Place), verdict: Verdict) -> i32 {
    if let Verdict::Translate(place) = verdict {
        write(ctx, &place);
    }
    GO_ON
}

/// A 32-bit field of the context, at an offset in bytes.
#[inline(always)]
fn get<const AT: usize>(ctx: &SockAddrContext) -> u32 {
    let value: u64;
    // SAFETY: the kernel passes a valid context for the whole run of the program; the verifier checks the offset.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {at})", out(reg) value, in(reg) ctx.sock_addr, at = const AT, options(readonly, nostack));
    }
    value as u32
}

/// Sets a 32-bit field of the context.
#[inline(always)]
fn set<const AT: usize>(ctx: &SockAddrContext, value: u32) {
    // SAFETY: as for reading; the fields written are writable in every hook that we attach to.
    unsafe {
        asm!("*(u32 *)({0} + {at}) = {1}", in(reg) ctx.sock_addr, in(reg) u64::from(value), at = const AT, options(nostack));
    }
}

const PROTOCOL: usize = offset_of!(bpf_sock_addr, protocol);
const PORT: usize = offset_of!(bpf_sock_addr, user_port);
const IP4: usize = offset_of!(bpf_sock_addr, user_ip4);
const IP6: usize = offset_of!(bpf_sock_addr, user_ip6);

/// `sk_protocol` of the calling socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    get::<PROTOCOL>(ctx)
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> [u8; 2] {
    (get::<PORT>(ctx) as u16).to_ne_bytes()
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: [u8; 2]) {
    set::<PORT>(ctx, u32::from(u16::from_ne_bytes(port)));
}

/// Hooks of AF_INET addresses.
pub mod v4 {
    use super::*;
    use sheave_abi::Address;

    /// The call's address.
    #[inline(always)]
    pub fn read(ctx: &SockAddrContext) -> Place {
        Place { address: Address::from_v4(get::<IP4>(ctx).to_ne_bytes()), port: port(ctx) }
    }

    /// Replaces the call's address.
    #[inline(always)]
    pub fn write(ctx: &SockAddrContext, place: &Place) {
        set::<IP4>(ctx, u32::from_ne_bytes(place.address.v4()));
        set_port(ctx, place.port);
    }
}

/// Hooks of AF_INET6 addresses. A v4-mapped one has the bytes of our own form already.
pub mod v6 {
    use super::*;
    use sheave_abi::Address;

    /// The call's address.
    #[inline(always)]
    pub fn read(ctx: &SockAddrContext) -> Place {
        let mut bytes = [0; 16];
        bytes[0..4].copy_from_slice(&get::<IP6>(ctx).to_ne_bytes());
        bytes[4..8].copy_from_slice(&get::<{ IP6 + 4 }>(ctx).to_ne_bytes());
        bytes[8..12].copy_from_slice(&get::<{ IP6 + 8 }>(ctx).to_ne_bytes());
        bytes[12..16].copy_from_slice(&get::<{ IP6 + 12 }>(ctx).to_ne_bytes());
        Place { address: Address(bytes), port: port(ctx) }
    }

    /// Replaces the call's address.
    #[inline(always)]
    pub fn write(ctx: &SockAddrContext, place: &Place) {
        let b = &place.address.0;
        set::<IP6>(ctx, u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        set::<{ IP6 + 4 }>(ctx, u32::from_ne_bytes([b[4], b[5], b[6], b[7]]));
        set::<{ IP6 + 8 }>(ctx, u32::from_ne_bytes([b[8], b[9], b[10], b[11]]));
        set::<{ IP6 + 12 }>(ctx, u32::from_ne_bytes([b[12], b[13], b[14], b[15]]));
        set_port(ctx, place.port);
    }
}
