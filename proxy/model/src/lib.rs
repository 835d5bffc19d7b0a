//! What Sheave forwards, as plain values: Services, their frontends and endpoints, and the facts of a node.
//!
//! The controller's index makes these values, the wire carries them, and a proxy's [`Store`] turns them into
//! [`Snapshot`]s, which both data paths read. Decisions that both must share are made here, once: which frontends a
//! Service has and who keeps one that two claim (`frontend`), and which endpoints a frontend uses (`choose`).
//!
//! Pure: no I/O, no clock, no randomness.

mod choose;
mod delta;
mod facts;
mod frontend;
mod names;
mod service;
mod snapshot;

pub use choose::choose;
pub use delta::{ContentHash, Delta, Resource, ResourceKey, Upsert, View};
pub use facts::{ClusterFacts, NodeFacts};
pub use frontend::{Claim, Frontend, FrontendKind, claims};
pub use service::{AppProtocol, Endpoint, Policy, Protocol, Service, ServiceKey, ServicePort};
pub use snapshot::{PortBackends, Route, ServiceState, Snapshot, Store};
