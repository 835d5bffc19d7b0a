//! The wire between a controller and its proxies, and between operators and both: the generated messages of `proto/`, and
//! conversions between them and the model.
//!
//! Resources travel encoded and hashed (`resource`), so that one encoding serves all subscribers and a proxy can say what it
//! holds by hashes alone. Whatever comes in is checked resource by resource (`update`): one that can't be right is refused
//! by name, with the reason, and the others go on. The generated code is committed; `tests/generated.rs` finds drift.
//!
//! No sockets and no tasks here: who serves and who dials is the business of the two programs.

mod decode;
mod encode;
mod error;
mod name;
mod resource;
mod update;
mod view;

/// The messages and the services, generated from `proto/discovery.proto` and `proto/operations.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub mod proto {
    include!("gen/sheave.discovery.v1.rs");
}

pub use error::WireError;
pub use name::{key_from_name, known, known_to_pair, name_of_key};
pub use resource::{Encoded, content_hash, decode_resource, encode_resource, hash_from_bytes, hash_to_bytes};
pub use update::{Decoded, Refusal, decode_update, decode_upsert};
pub use view::{view_from_proto, view_to_proto};

/// The most bytes of resources and names that go into one Update, unless a single resource is larger: below 1 MiB with the
/// framing, so that a large first series never blocks the stream's other messages for long.
pub const MAX_CHUNK_BYTES: usize = 960 << 10;

/// The largest encoded resource that is sent: about 100,000 endpoints. A larger one is left out and said to be.
pub const MAX_RESOURCE_BYTES: usize = 8 << 20;

/// The largest message that either side decodes: a Hello that names 150,000 resources, or one resource and its framing.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// About the most bytes in one part of an answer to an operator; a part is one Service more at most.
pub const MAX_PART_BYTES: usize = 64 << 10;

/// The most bytes of a whole answer of one node; what is beyond is left out and said to be.
pub const MAX_ANSWER_BYTES: usize = 16 << 20;
