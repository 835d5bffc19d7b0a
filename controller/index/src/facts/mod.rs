//! Facts: the fields of Kubernetes objects that somebody reads, validated and compact. What is wrong with an object is left
//! out of its facts and described by a [`Condition`]; only an object without a name is refused as a whole.

mod address;
mod cluster;
mod pod;
mod ports;
mod service;
mod slice;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use address::{parse_address, parse_prefix};
pub use cluster::{CidrFacts, NodeObjectFacts};
pub use pod::{NamedPort, PodFacts};
pub use service::{Class, Label, ServiceFacts, Target};
pub use slice::{SliceEndpoint, SliceFacts, SlicePort};

use crate::{Condition, Facts, Kind, Object, ObjectKey, Strings};

/// An object that cannot even be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadObject {
    /// It has no name.
    #[error("{0}: metadata.name: is missing; give the object a name")]
    Nameless(Kind),
    /// It has no namespace, and its kind lives in one.
    #[error("{0} {1}: metadata.namespace: is missing; name the object's namespace")]
    NoNamespace(Kind, String),
}

/// The facts of a Service.
///
/// # Errors
/// When it has no name or namespace; so too for the other kinds.
pub fn from_service(service: &Service, strings: &mut Strings) -> Result<Object, BadObject> {
    object(Kind::Service, &service.metadata, strings, |problems, strings| {
        Facts::Service(Arc::new(service::read(service, problems, strings)))
    })
}

/// The facts of a Pod.
///
/// # Errors
/// As [`from_service`].
pub fn from_pod(pod: &Pod, strings: &mut Strings) -> Result<Object, BadObject> {
    object(Kind::Pod, &pod.metadata, strings, |problems, strings| {
        Facts::Pod(Arc::new(pod::read(pod, problems, strings)))
    })
}

/// The facts of a Node.
///
/// # Errors
/// As [`from_service`].
pub fn from_node(node: &Node, strings: &mut Strings) -> Result<Object, BadObject> {
    object(Kind::Node, &node.metadata, strings, |problems, strings| {
        Facts::Node(Arc::new(cluster::read_node(node, problems, strings)))
    })
}

/// The facts of an EndpointSlice.
///
/// # Errors
/// As [`from_service`].
pub fn from_slice(slice: &EndpointSlice, strings: &mut Strings) -> Result<Object, BadObject> {
    object(Kind::EndpointSlice, &slice.metadata, strings, |problems, strings| {
        Facts::EndpointSlice(Arc::new(slice::read(slice, problems, strings)))
    })
}

/// A Namespace.
///
/// # Errors
/// As [`from_service`].
pub fn from_namespace(namespace: &Namespace, strings: &mut Strings) -> Result<Object, BadObject> {
    object(Kind::Namespace, &namespace.metadata, strings, |_, _| Facts::Namespace)
}

/// The facts of a ServiceCIDR.
///
/// # Errors
/// As [`from_service`].
pub fn from_service_cidr(cidr: &ServiceCIDR, strings: &mut Strings) -> Result<Object, BadObject> {
    object(Kind::ServiceCidr, &cidr.metadata, strings, |problems, _| {
        Facts::ServiceCidr(Arc::new(cluster::read_cidrs(cidr, problems)))
    })
}

/// Collects what is wrong while one object is read.
struct Problems {
    object: ObjectKey,
    list: Vec<Condition>,
}

impl Problems {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) {
        let (field, message, remedy) = (field.into(), message.into(), remedy.into());
        self.list.push(Condition { object: self.object.clone(), field, message, remedy });
    }
}

fn object(
    kind: Kind,
    meta: &ObjectMeta,
    strings: &mut Strings,
    read: impl FnOnce(&mut Problems, &mut Strings) -> Facts,
) -> Result<Object, BadObject> {
    let name = meta.name.as_deref().filter(|name| !name.is_empty()).ok_or(BadObject::Nameless(kind))?;
    let namespace = match meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
        Some(namespace) if kind.is_namespaced() => namespace,
        None if kind.is_namespaced() => return Err(BadObject::NoNamespace(kind, name.to_owned())),
        _ => "",
    };
    let key = ObjectKey { kind, namespace: strings.get(namespace), name: name.into() };
    let version = meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0);
    let mut problems = Problems { object: key.clone(), list: Vec::new() };
    let facts = read(&mut problems, strings);
    Ok(Object { key, version, facts, conditions: problems.list })
}

/// Labels as a sorted list of shared pairs: a third of a map's memory.
fn labels(map: Option<&BTreeMap<String, String>>, strings: &mut Strings) -> Box<[Label]> {
    map.into_iter().flatten().map(|(key, value)| (strings.get(key), strings.get(value))).collect()
}
