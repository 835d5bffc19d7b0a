//! Trust between controller and proxies where an API server stands behind both (`--trust kube`).
//!
//! The leader makes a CA in Secret `sheave-ca` and writes ConfigMap `sheave-discovery` with every replica's address and the CA, for
//! kubelets to mount (`keeper`, `rotation`). Every replica keeps a Lease that says where it serves (`replicas`), signs its own
//! certificate (`certificate`), and sends the directory to its proxies (`directory`). A proxy proves its node by a token
//! that the API server reviews (`review`, `cache`), an operator that they may ask (`operators`).

mod cache;
mod certificate;
mod directory;
#[cfg(test)]
pub(crate) mod fake;
mod keeper;
mod keys;
mod objects;
mod operators;
mod replicas;
mod review;
mod rotation;
#[cfg(test)]
mod tests;

pub(crate) use self::certificate::Serving;
pub(crate) use self::directory::Directory;
pub(crate) use self::keeper::{Trust, keep};
pub(crate) use self::operators::{Denied, Operators};
pub(crate) use self::review::{Refused, Reviewer};
