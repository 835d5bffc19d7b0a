//! Names of resources.

use sheave_model::{ContentHash, ResourceKey, ServiceKey};

use crate::proto;
use crate::proto::resource_name::Name;
use crate::{WireError, hash_from_bytes, hash_to_bytes};

/// A key as it travels.
pub fn name_of_key(key: &ResourceKey) -> proto::ResourceName {
    let name = match key {
        ResourceKey::Service(key) => Name::Service(service_name(key)),
        ResourceKey::Node(name) => Name::Node(name.to_string()),
        ResourceKey::Cluster => Name::Cluster(proto::Empty {}),
    };
    proto::ResourceName { name: Some(name) }
}

/// A key as it came. Fails where a part is missing or empty.
pub fn key_from_name(name: &proto::ResourceName) -> Result<ResourceKey, WireError> {
    match name.name.as_ref().ok_or(WireError::NoName)? {
        Name::Service(name) => service_key(name).map(ResourceKey::Service),
        Name::Node(name) if name.is_empty() => Err(WireError::NoName),
        Name::Node(name) => Ok(ResourceKey::Node(name.as_str().into())),
        Name::Cluster(_) => Ok(ResourceKey::Cluster),
    }
}

/// An entry of Hello.
pub fn known(key: &ResourceKey, hash: ContentHash) -> proto::Known {
    proto::Known { name: Some(name_of_key(key)), hash: hash_to_bytes(hash) }
}

/// An entry of Hello as it came. Fails on a missing name and on a hash of another length.
pub fn known_to_pair(known: &proto::Known) -> Result<(ResourceKey, ContentHash), WireError> {
    let key = key_from_name(known.name.as_ref().ok_or(WireError::NoName)?)?;
    Ok((key, hash_from_bytes(&known.hash)?))
}

pub(crate) fn service_name(key: &ServiceKey) -> proto::ServiceName {
    proto::ServiceName { namespace: key.namespace.to_string(), name: key.name.to_string() }
}

pub(crate) fn service_key(name: &proto::ServiceName) -> Result<ServiceKey, WireError> {
    if name.namespace.is_empty() || name.name.is_empty() {
        return Err(WireError::NoName);
    }
    Ok(ServiceKey::new(name.namespace.as_str(), name.name.as_str()))
}
