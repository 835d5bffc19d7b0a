//! The whole userspace path in network namespaces. Needs root, as the program itself does.

mod ends;
mod http;
mod reuse;
mod start;
mod tcp;
mod udp;
mod world;
