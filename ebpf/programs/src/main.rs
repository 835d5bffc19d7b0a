//! The socket hooks: one entry point for each attach point. They move addresses between the kernel's context and
//! `sheave-datapath`, which decides; what it reads and writes is in `socket`, the maps in `maps`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)] // for one atomic addition; see socket::add_one

mod context;
mod maps;
mod socket;

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use sheave_datapath as datapath;

use context::{apply, show, v4, v6};
use socket::Socket;

/// connect() of AF_INET.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    let Some(transport) = socket.transport() else { return context::GO_ON };
    apply(&ctx, v4::write, datapath::connect(&socket, transport, v4::read(&ctx)))
}

/// connect() of AF_INET6, v4-mapped destinations among them.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    let Some(transport) = socket.transport() else { return context::GO_ON };
    apply(&ctx, v6::write, datapath::connect(&socket, transport, v6::read(&ctx)))
}

/// sendto() and sendmsg() of UDP with an IPv4 destination; a v4-mapped one of AF_INET6 comes here too.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    if !socket.is_udp() {
        return context::GO_ON;
    }
    apply(&ctx, v4::write, datapath::sendmsg(&socket, v4::read(&ctx)))
}

/// sendto() and sendmsg() of UDP with an IPv6 destination.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    if !socket.is_udp() {
        return context::GO_ON;
    }
    apply(&ctx, v6::write, datapath::sendmsg(&socket, v6::read(&ctx)))
}

/// recvfrom() and recvmsg() of AF_INET UDP.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    if !socket.is_udp() {
        return context::GO_ON;
    }
    show(&ctx, v4::write, datapath::recvmsg(&socket, v4::read(&ctx)))
}

/// recvfrom() and recvmsg() of AF_INET6 UDP, v4-mapped senders among them.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    if !socket.is_udp() {
        return context::GO_ON;
    }
    show(&ctx, v6::write, datapath::recvmsg(&socket, v6::read(&ctx)))
}

/// getpeername() of AF_INET.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    let Some(transport) = socket.transport() else { return context::GO_ON };
    show(&ctx, v4::write, datapath::getpeername(&socket, transport, v4::read(&ctx)))
}

/// getpeername() of AF_INET6.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    let socket = Socket::new(&ctx);
    let Some(transport) = socket.transport() else { return context::GO_ON };
    show(&ctx, v6::write, datapath::getpeername(&socket, transport, v6::read(&ctx)))
}

/// bpf_sk_storage and others are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing in here can panic; the language wants a handler.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
