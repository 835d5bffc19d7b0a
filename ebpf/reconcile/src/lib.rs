//! From snapshots to the kernel's maps: which rows there should be, and the order of writes in which no connection ever meets
//! a half-written Service.
//!
//! [`Reconciler`] owns what the maps hold and is the only one that has them changed, through [`Maps`]:
//!
//! ```text
//! let mut reconciler = Reconciler::new(loader.restored()?);      // the pinned maps are the truth until the first update
//! let report = reconciler.update(&snapshot, now, &mut loader);   // a complete snapshot, then each later one
//! sleep_until(reconciler.poll_timeout());                        // None: nothing waits
//! let report = reconciler.handle_timeout(now, &mut loader);      // sweeps old rows, tries again what failed
//! ```
//!
//! - A change costs what it changes: snapshots are compared by [`imbl::OrdMap::diff`], a Service that didn't change isn't
//!   looked at, and of a large set only the slots that differ are written.
//! - Order for one target: backends, slots, then each frontend's row as the commit; [`GRACE`] later, when no program can
//!   still hold the old row, old slots and orphaned backends. Ids are never reused within it. Deleting runs backwards.
//!   After *every* operation, a failed one included, no frontend names a slot or backend that is missing.
//! - A target whose rows can't be written (a full map) is reported, and its frontends are left to the listeners until a
//!   later try succeeds; the others go on.
//! - A restart that finds an unchanged Service writes nothing: targets are known again by the hash in their rows.
//!
//! Pure: no clock, no I/O. [`Fake`] and [`Faulty`] stand in for the kernel in tests.

mod agenda;
mod diff;
mod fake;
mod key;
mod ops;
mod plan;
mod realized;
mod reconciler;
mod restore;
mod sweep;
mod target;

pub use agenda::GRACE;
pub use fake::{Fake, Faulty};
pub use key::TargetKey;
pub use ops::{Failure, MapError, MapOp, Maps, Report, Restored, Usage};
pub use reconciler::Reconciler;

#[cfg(test)]
mod tests;
