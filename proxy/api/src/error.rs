//! What can be wrong with a message.

/// Why a name or a resource was refused. The text goes back to the sender, and into its log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A resource without a name, or with an empty one.
    #[error("it has no name")]
    NoName,
    /// The bytes are no message of the kind that the name says.
    #[error("its bytes can't be decoded: {0}")]
    Undecodable(String),
    /// The resource is another one than the name around it says.
    #[error("it is named {outer:?} outside and {inner:?} inside")]
    OtherName {
        /// The name that travels beside the bytes.
        outer: String,
        /// The name in the bytes.
        inner: String,
    },
    /// A hash of another length than 16 bytes.
    #[error("its hash has {0} bytes instead of 16")]
    HashLength(usize),
    /// The bytes don't have the hash that came with them.
    #[error("its bytes have another hash than it says")]
    OtherHash,
    /// Larger than [`crate::MAX_RESOURCE_BYTES`].
    #[error("it has {0} bytes, more than is allowed")]
    TooLarge(usize),
    /// An address of another length than 4 or 16 bytes.
    #[error("{field} has an address of {length} bytes instead of 4 or 16")]
    Address {
        /// Where.
        field: &'static str,
        /// How many bytes it has.
        length: usize,
    },
    /// A prefix that is longer than its address.
    #[error("{field} has the prefix length {length}, longer than the address")]
    Prefix {
        /// Where.
        field: &'static str,
        /// What it says.
        length: u32,
    },
    /// A port that is out of range, or 0 where that means nothing.
    #[error("{field} is {value}, not a port")]
    Port {
        /// Where.
        field: &'static str,
        /// What it says.
        value: u32,
    },
    /// An enumerator that this version doesn't know.
    #[error("{field} is {value}, which this version doesn't know")]
    Unknown {
        /// Where.
        field: &'static str,
        /// Its number.
        value: i32,
    },
    /// An endpoint with more ports than its Service.
    #[error("an endpoint has {endpoint} ports and the Service {service}")]
    EndpointPorts {
        /// How many the endpoint has.
        endpoint: usize,
        /// How many the Service has.
        service: usize,
    },
}
