//! From Kubernetes objects to the resources that proxies receive.
//!
//! A source converts each object it sees to compact facts ([`facts`]: only fields that somebody reads are kept) and feeds
//! them to an [`Index`], which answers with the resources that may have changed; [`Index::compute`] makes one of them.
//! Bad input never stops anything: the bad part is left out and becomes a [`Condition`].
//!
//! Pure: no I/O, no clock, no randomness, no cluster client; k8s-openapi is used for its plain data types only.
//!
//! ```text
//! let mut strings = Strings::default();                      // shares equal strings; one for each source task
//! let object = facts::from_pod(&pod, &mut strings)?;         // also from_service, from_node, from_slice,
//!                                                            //   from_namespace, from_service_cidr
//! index.begin_resync(Kind::Pod);                             // a list starts
//! let dirty: BTreeSet<ResourceKey> = index.apply(object);
//! let dirty = index.end_resync(Kind::Pod, list_version);     // what the list did not name is deleted
//! let dirty = index.delete(&object_key);
//! index.seen(Kind::Pod, version);                            // a bookmark, or a deleted object's version
//! index.compute(&key)              -> Option<Resource>       // None: gone
//! index.compute_and_note(&key)     -> Option<Resource>       // the same, and a condition where something had to be left out
//! index.keys()                     -> Vec<ResourceKey>       // every resource there is
//! index.view()                     -> BTreeMap<String, u64>  // newest resourceVersion for each kind
//! index.len(Kind::Pod)             -> usize
//! index.nodes_with(ns, &label)     -> BTreeSet<Arc<str>>     // the Nodes that Pods with a label are on
//! index.conditions()               -> impl Iterator<Item = &Condition>  // what is wrong now, for /debug/services
//! index.conditions_of(&object_key) -> impl Iterator<Item = &Condition>
//! index.left_out(Kind::Service)    -> usize                  // those of a kind that leave something out
//! index.take_new_conditions()      -> Vec<Condition>         // what has gone wrong since the last call: log and count
//! ```

mod claims;
mod compute;
mod condition;
mod endpoints;
pub mod facts;
mod index;
mod object;
mod space;
mod strings;

pub use condition::Condition;
pub use index::{Index, MAX_ENDPOINTS, WIDE_SELECTOR};
pub use object::{Facts, Kind, Object, ObjectKey};
pub use strings::Strings;

#[cfg(test)]
mod tests;
