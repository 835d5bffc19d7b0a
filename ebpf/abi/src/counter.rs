//! The node-wide counters that programs keep, one row per CPU each.

/// Index into the map `stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Counter {
    /// connect() of a TCP socket that was pointed at an IPv4 backend.
    TcpV4 = 0,
    /// The same, IPv6.
    TcpV6 = 1,
    /// connect() or a datagram of a UDP socket that was pointed at an IPv4 backend.
    UdpV4 = 2,
    /// The same, IPv6.
    UdpV6 = 3,
    /// Calls refused because a Service port has no endpoint.
    Refused = 4,
    /// Calls left to the packet path because a slot or backend was missing twice. Stays 0 while the order of map writes holds.
    Missed = 5,
    /// Calls left to the packet path because the frontend is marked so.
    Listener = 6,
    /// Calls left to the packet path because the kernel had no memory to remember the socket by.
    Untracked = 7,
}

impl Counter {
    /// How many there are.
    pub const COUNT: u32 = 8;

    /// All, in the order of their indexes.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::TcpV4,
        Self::TcpV6,
        Self::UdpV4,
        Self::UdpV6,
        Self::Refused,
        Self::Missed,
        Self::Listener,
        Self::Untracked,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_stands_at_its_own_index() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }
}
