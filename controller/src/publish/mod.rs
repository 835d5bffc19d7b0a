//! What all subscribers share: the catalog of encoded resources with its log of changes, and the view they come from.
//!
//! The index task is the only writer. Subscribers read at their own pace, each with a place in the log of its own.

mod catalog;
mod publisher;
#[cfg(test)]
mod tests;

pub(crate) use catalog::{Change, Chunk, First, Lost};
pub(crate) use publisher::{Lists, Publisher, Standing};
