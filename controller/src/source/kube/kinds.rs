//! The kinds that are watched, each with its way to facts.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Resource;
use serde::de::DeserializeOwned;
use sheave_index::facts::{self, BadObject};
use sheave_index::{Kind, Object, Strings};

/// A kind of object as the API server sends it.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    const KIND: Kind;

    /// Whether there are API servers that don't have it, which then means that there is nothing of it. Of the other kinds an
    /// answer of 404 is a failure: whoever believed it would take everything away.
    const OPTIONAL: bool = matches!(Self::KIND, Kind::ServiceCidr);

    /// What is read of it.
    fn facts(&self, strings: &mut Strings) -> Result<Object, BadObject>;
}

macro_rules! watched {
    ($($kind:ident: $type:ty => $from:path;)*) => {
        $(impl Watched for $type {
            const KIND: Kind = Kind::$kind;

            fn facts(&self, strings: &mut Strings) -> Result<Object, BadObject> {
                $from(self, strings)
            }
        })*
    };
}

watched! {
    Node: Node => facts::from_node;
    Namespace: Namespace => facts::from_namespace;
    ServiceCidr: ServiceCIDR => facts::from_service_cidr;
    Service: Service => facts::from_service;
    EndpointSlice: EndpointSlice => facts::from_slice;
    Pod: Pod => facts::from_pod;
}
