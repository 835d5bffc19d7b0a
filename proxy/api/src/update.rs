//! An Update as it came: what of it can be applied, and what has to be refused.

use std::time::Duration;

use sheave_model::{Delta, ResourceKey, Upsert};

use crate::{WireError, content_hash, decode_resource, hash_from_bytes, key_from_name, proto, view_from_proto};

/// A resource that can't be applied. `Ack` carries it back.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Which one, as far as its name could be read.
    pub key: Option<ResourceKey>,
    /// The name as it came, which goes back as it came.
    pub name: Option<proto::ResourceName>,
    /// Why.
    pub error: WireError,
}

impl Refusal {
    fn new(name: Option<proto::ResourceName>, error: WireError) -> Self {
        let key = name.as_ref().and_then(|name| key_from_name(name).ok());
        Self { key, name, error }
    }

    /// As it travels.
    pub fn to_nack(&self) -> proto::Nack {
        proto::Nack { name: self.name.clone(), reason: self.error.to_string() }
    }
}

/// An Update, decoded.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Goes back in the Ack.
    pub nonce: u64,
    /// Everything that could be decoded.
    pub delta: Delta,
    /// Everything that couldn't.
    pub refused: Vec<Refusal>,
    /// Whether the first series ends with it: what isn't known from the series and isn't removed by it stands.
    pub last_of_initial: bool,
    /// How long ago the replica last heard from its source.
    pub age: Duration,
}

/// Decodes an Update, resource by resource.
pub fn decode_update(update: proto::Update) -> Decoded {
    let (view, age) = view_from_proto(update.view.unwrap_or_default());
    let mut delta = Delta { view, observed_unix_nanos: update.observed_unix_nanos, ..Delta::default() };
    let mut refused = Vec::new();
    for upsert in update.upserts {
        match decode_upsert(upsert) {
            Ok(upsert) => delta.upserts.push(upsert),
            Err(refusal) => refused.push(*refusal),
        }
    }
    for name in update.removals {
        match key_from_name(&name) {
            Ok(key) => delta.removals.push(key),
            Err(error) => refused.push(Refusal::new(Some(name), error)),
        }
    }
    Decoded { nonce: update.nonce, delta, refused, last_of_initial: update.last_of_initial, age }
}

/// Decodes one resource: its name, its hash, its bytes, and that the three belong together.
pub fn decode_upsert(upsert: proto::Upsert) -> Result<Upsert, Box<Refusal>> {
    let proto::Upsert { name, hash, resource } = upsert;
    let decoded = || {
        let key = key_from_name(name.as_ref().ok_or(WireError::NoName)?)?;
        let hash = hash_from_bytes(&hash)?;
        if content_hash(&resource) != hash {
            return Err(WireError::OtherHash);
        }
        Ok(Upsert { hash, resource: decode_resource(&key, resource)? })
    };
    let result = decoded();
    result.map_err(|error| Box::new(Refusal::new(name, error)))
}
