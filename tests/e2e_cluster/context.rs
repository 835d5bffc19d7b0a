//! What a case is, and what it works with: a namespace of its own, Services in it, and clients everywhere.

use anyhow::Result;
use sheave_harness::agent::Agent;
use sheave_harness::cluster::DataPath;
pub(crate) use sheave_harness::kubelets::service::{Service, addresses};

use crate::fixture::{Fixture, Node};
use crate::workload::{self, Deployment};

/// A claim about the cluster, and the function that tries to disprove it.
pub(crate) struct Case {
    /// The claim.
    pub(crate) name: &'static str,
    /// Tries it; both families inside.
    pub(crate) run: fn(&Context<'_>) -> Result<()>,
    /// Whether it is about the product itself, and not about what anything that serves Services must do.
    pub(crate) of_sheave: bool,
    /// Whether it is left to `make e2e-cluster`, and not part of `make test`.
    pub(crate) long: bool,
}

/// A case that holds whatever serves the cluster's Services.
pub(crate) const fn case(name: &'static str, run: fn(&Context<'_>) -> Result<()>) -> Case {
    Case { name, run, of_sheave: false, long: false }
}

/// A case about the product.
pub(crate) const fn sheave(name: &'static str, run: fn(&Context<'_>) -> Result<()>) -> Case {
    Case { name, run, of_sheave: true, long: false }
}

impl Case {
    /// Left to `make e2e-cluster`.
    pub(crate) const fn long(self) -> Self {
        Self { long: true, ..self }
    }
}

/// What a case is given.
pub(crate) struct Context<'a> {
    /// What all cases share.
    pub(crate) fixture: &'a Fixture,
    /// The case's own namespace.
    pub(crate) namespace: String,
    /// The data path that every proxy was told to take; none where something else serves Services.
    pub(crate) path: Option<DataPath>,
}

impl<'a> Context<'a> {
    /// For a case in this namespace.
    pub(crate) fn new(fixture: &'a Fixture, namespace: String, path: Option<DataPath>) -> Self {
        Self { fixture, namespace, path }
    }

    /// Makes the namespace.
    pub(crate) fn prepare(&self) -> Result<()> {
        workload::namespace(&self.fixture.api, &self.namespace)
    }

    /// Deletes the namespace with all that is in it; that goes on beside the next case, which has another.
    pub(crate) fn forget(&self) -> Result<()> {
        self.fixture.api.delete("Namespace", "", &self.namespace, 0)
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> &'a [Node] {
        &self.fixture.nodes
    }

    /// Every client in the cluster: a pod and a pod on the host network of each node.
    pub(crate) fn inside(&self) -> impl Iterator<Item = &'a Agent> + use<'a> {
        self.fixture.nodes.iter().flat_map(|node| [&node.pod, &node.host])
    }

    /// A Deployment, ready.
    pub(crate) fn deployment<'b>(&'b self, name: &'b str, replicas: usize) -> Result<Deployment<'b>> {
        Deployment::start(&self.fixture.api, &self.namespace, name, replicas)
    }

    /// A dual-stack Service of this type in front of the Deployment of the same name (TCP 80, UDP 53), as the API server made it.
    pub(crate) fn service(&self, name: &str, kind: &str) -> Result<Service> {
        Service::apply(&self.fixture.api, &self.namespace, name, kind)
    }
}
