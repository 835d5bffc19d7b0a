//! What a case is: a claim, where it holds, and how its data path is proved.

use anyhow::Result;

use crate::context::Context;

/// A claim about the product, and the function that tries to disprove it.
#[derive(Debug)]
pub(crate) struct Case {
    /// The claim.
    pub(crate) name: &'static str,
    /// Tries it; both families inside.
    pub(crate) run: fn(&Context) -> Result<()>,
    /// What the controller reads meanwhile.
    pub(crate) sources: Sources,
    /// How the eBPF path is proved by counters.
    pub(crate) proof: Proof,
}

/// Which sources a case runs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sources {
    /// The API server only.
    Kube,
    /// The folder only.
    Folder,
    /// Each in turn.
    Both,
}

impl Sources {
    /// Whether the case runs from this source.
    pub(crate) fn include(self, source: &str) -> bool {
        match self {
            Self::Kube => source == "kube",
            Self::Folder => source == "dir",
            Self::Both => true,
        }
    }
}

/// What the counters of the nodes' proxies must have done during a case on the eBPF path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The hook translated, and the listeners took nothing.
    Hook,
    /// The listeners took connections, for this reason.
    Listener(&'static str),
    /// The case itself looks, or no connection is made, for this reason.
    Own(&'static str),
}

/// A case that runs from the API server and on the eBPF path is served by the hook alone.
pub(crate) const fn kube(name: &'static str, run: fn(&Context) -> Result<()>) -> Case {
    Case { name, run, sources: Sources::Kube, proof: Proof::Hook }
}

/// The same from both sources.
pub(crate) const fn both(name: &'static str, run: fn(&Context) -> Result<()>) -> Case {
    Case { name, run, sources: Sources::Both, proof: Proof::Hook }
}

/// The same from the folder.
pub(crate) const fn folder(name: &'static str, run: fn(&Context) -> Result<()>) -> Case {
    Case { name, run, sources: Sources::Folder, proof: Proof::Hook }
}

impl Case {
    /// With another proof.
    pub(crate) const fn proof(self, proof: Proof) -> Self {
        Self { proof, ..self }
    }
}
