//! The hooks in this machine's kernel: real sockets, in a cgroup, a network namespace and a bpffs of their own.
//!
//! Each test runs this binary again inside `unshare --mount --net`, so that nothing it does can reach the machine's network
//! or mounts; its cgroup and bpffs are removed when it ends. Without root a test says so and does nothing.

#![allow(clippy::unwrap_used, reason = "a helper of a test may fail it")]

mod life;
mod tcp;
mod udp;
mod world;
