//! The socket hooks' decision: given a socket and the address of a call, leave it, point it elsewhere, or refuse it.
//!
//! The same code runs in the kernel (`ebpf/programs` implements [`Tables`] and [`Env`] over maps and helpers) and in tests on
//! the host. No unsafe, no allocation, no I/O. Everything is inlined into the entry points, since a BPF program pays for
//! calls with registers and the verifier follows them anyway.
//!
//! What is no frontend is left alone: other ports of a ClusterIP and unknown addresses of a ServiceCIDR are decided by the
//! packet path beneath.
#![no_std]
#![forbid(unsafe_code)]

mod call;
mod choose;
mod connect;
mod datagram;

pub use call::{Env, Place, Tables, Transport, Verdict};
pub use connect::{connect, getpeername};
pub use datagram::{recvmsg, sendmsg};

#[cfg(test)]
extern crate std;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
