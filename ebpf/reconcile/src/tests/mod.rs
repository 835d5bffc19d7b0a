//! The reconciler against maps that check every operation.

mod property;
mod steps;
mod world;
