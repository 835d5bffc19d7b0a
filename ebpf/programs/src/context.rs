//! Reading and writing `bpf_sock_addr`. The verifier wants each access to a field of it by itself, at its full width and at a
//! constant offset, hence volatile.

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

/// A field of the context.
macro_rules! get {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the kernel passes a valid context for the whole run of the program; the verifier checks the offset.
        unsafe { (&raw const (*$ctx.sock_addr).$($field)+).read_volatile() }
    };
}

/// Sets a field of the context.
macro_rules! set {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for reading; the fields written are writable in every hook that we attach to.
        unsafe { (&raw mut (*$ctx.sock_addr).$($field)+).write_volatile($value) }
    };
}

/// `sk_protocol` of the calling socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    get!(ctx, protocol)
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> [u8; 2] {
    (get!(ctx, user_port) as u16).to_ne_bytes()
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: [u8; 2]) {
    set!(ctx, u32::from(u16::from_ne_bytes(port)), user_port);
}

/// Hooks of AF_INET addresses.
pub mod v4 {
    use super::*;
    use sheave_abi::Address;

    /// The call's address.
    #[inline(always)]
    pub fn read(ctx: &SockAddrContext) -> Place {
        Place { address: Address::from_v4(get!(ctx, user_ip4).to_ne_bytes()), port: port(ctx) }
    }

    /// Replaces the call's address.
    #[inline(always)]
    pub fn write(ctx: &SockAddrContext, place: &Place) {
        set!(ctx, u32::from_ne_bytes(place.address.v4()), user_ip4);
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
        bytes[0..4].copy_from_slice(&get!(ctx, user_ip6[0]).to_ne_bytes());
        bytes[4..8].copy_from_slice(&get!(ctx, user_ip6[1]).to_ne_bytes());
        bytes[8..12].copy_from_slice(&get!(ctx, user_ip6[2]).to_ne_bytes());
        bytes[12..16].copy_from_slice(&get!(ctx, user_ip6[3]).to_ne_bytes());
        Place { address: Address(bytes), port: port(ctx) }
    }

    /// Replaces the call's address.
    #[inline(always)]
    pub fn write(ctx: &SockAddrContext, place: &Place) {
        let b = &place.address.0;
        set!(ctx, u32::from_ne_bytes([b[0], b[1], b[2], b[3]]), user_ip6[0]);
        set!(ctx, u32::from_ne_bytes([b[4], b[5], b[6], b[7]]), user_ip6[1]);
        set!(ctx, u32::from_ne_bytes([b[8], b[9], b[10], b[11]]), user_ip6[2]);
        set!(ctx, u32::from_ne_bytes([b[12], b[13], b[14], b[15]]), user_ip6[3]);
        set_port(ctx, place.port);
    }
}
