//! Puts the socket hooks into the kernel and carries rows to and from their maps.
//!
//! ```text
//! Loader::probe(&options)?;                    // for `--datapath auto`: one line says why eBPF can't be used
//! let mut loader = Loader::open(&options)?;    // makes or adopts maps, attaches or replaces programs
//! let mut reconciler = Reconciler::new(&loader.restored()?);
//! reconciler.update(&snapshot, now, &mut loader);
//! drop(loader);                                // everything stays in the kernel
//! sheave_loader::clean(bpffs)?;                // now it doesn't
//! ```
//!
//! Pins are in `BPFFS/sheave/v1/`: the maps by name, the attachments (BPF links) in `links/`. A restarted proxy adopts maps
//! as they are and replaces the program behind each link in one step, so no connect() passes unhooked. A directory of
//! another version is refused.
//!
//! One process at a time may own a bpffs's pins (the proxy's lock in its state folder sees to it). Does not decide what is
//! in the maps (`sheave-reconcile`) nor what programs do with it (`sheave-datapath`). Calls block, briefly; nothing here is
//! async.

mod clean;
mod error;
mod flows;
mod links;
mod loader;
mod object;
mod paths;
mod stats;
mod sys;
mod tables;

pub use clean::clean;
pub use error::Error;
pub use flows::Flows;
pub use loader::{Loader, Options, Sizes};
pub use paths::find_cgroup2;
pub use stats::{Fill, Stats};
pub use sys::netns_cookie;
