//! Who may write: one replica, by a Lease at an API server, by the lock of the state folder where there is none. Every replica
//! serves, leader or not.

mod lease;
mod lock;

pub(crate) use lease::campaign;
pub(crate) use lock::StateLock;
