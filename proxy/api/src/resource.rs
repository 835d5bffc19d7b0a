//! One resource to bytes and back. The bytes are the same wherever they are made: fields in order and no maps, so their hash
//! names the content.

use bytes::Bytes;
use prost::Message;
use sheave_model::{ContentHash, Resource, ResourceKey};
use xxhash_rust::xxh3::xxh3_128;

use crate::{MAX_RESOURCE_BYTES, WireError, decode, encode, proto};

/// A resource's encoded form; clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The encoded Service, Node or Cluster.
    pub bytes: Bytes,
    /// Hash of the bytes.
    pub hash: ContentHash,
}

/// Encodes a resource and hashes the result.
pub fn encode_resource(resource: &Resource) -> Encoded {
    let bytes = Bytes::from(match resource {
        Resource::Service(service) => encode::service(service).encode_to_vec(),
        Resource::Node(node) => encode::node(node).encode_to_vec(),
        Resource::Cluster(cluster) => encode::cluster(cluster).encode_to_vec(),
    });
    let hash = content_hash(&bytes);
    Encoded { bytes, hash }
}

/// Decodes the resource that `key` names. Fails on whatever can't be right: see [`WireError`].
pub fn decode_resource(key: &ResourceKey, bytes: Bytes) -> Result<Resource, WireError> {
    if bytes.len() > MAX_RESOURCE_BYTES {
        return Err(WireError::TooLarge(bytes.len()));
    }
    let resource = match key {
        ResourceKey::Service(_) => Resource::Service(decode::service(message::<proto::Service>(bytes)?)?),
        ResourceKey::Node(_) => Resource::Node(decode::node(&message::<proto::Node>(bytes)?)?),
        ResourceKey::Cluster => Resource::Cluster(decode::cluster(&message::<proto::Cluster>(bytes)?)?),
    };
    let inner = resource.key();
    if inner != *key {
        return Err(WireError::OtherName { outer: key.to_string(), inner: inner.to_string() });
    }
    Ok(resource)
}

fn message<M: Message + Default>(bytes: Bytes) -> Result<M, WireError> {
    M::decode(bytes).map_err(|error| WireError::Undecodable(error.to_string()))
}

/// The hash of encoded bytes: XXH3-128, which is fast and has no collisions by accident. It guards against damage and saves
/// traffic; it doesn't authenticate, the stream's TLS does.
pub fn content_hash(bytes: &[u8]) -> ContentHash {
    ContentHash(xxh3_128(bytes))
}

/// A hash as it travels: 16 bytes, big-endian.
pub fn hash_to_bytes(hash: ContentHash) -> Bytes {
    Bytes::copy_from_slice(&hash.0.to_be_bytes())
}

/// A hash as it came. Fails on another length than 16.
pub fn hash_from_bytes(bytes: &[u8]) -> Result<ContentHash, WireError> {
    let array = <[u8; 16]>::try_from(bytes).map_err(|_| WireError::HashLength(bytes.len()))?;
    Ok(ContentHash(u128::from_be_bytes(array)))
}
