//! The connections of a thread, by number; and the numbers that the kernel says of their sockets.

use super::connection::{Connection, Leg};

/// Connections of one thread at most.
const INDEX_BITS: u32 = 23;

/// What the kernel is given to name a socket with: the place of its connection, how often that place was used, which try
/// the socket belongs to, and which leg. So what it says of a socket that was closed meanwhile is never taken for
/// another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    generation: u32,
    index: usize,
    /// The try that the socket, or a timer, belongs to.
    pub(crate) tries: u8,
    /// The leg.
    pub(crate) leg: Leg,
}

impl Token {
    /// As a number below [`Token::END`].
    pub(crate) fn number(self) -> u64 {
        let leg = u64::from(self.leg == Leg::Backend);
        u64::from(self.generation) << 32 | (self.index as u64) << 9 | u64::from(self.tries) << 1 | leg
    }

    /// Back from a number.
    pub(crate) fn of(number: u64) -> Self {
        Self {
            generation: (number >> 32) as u32,
            index: (number >> 9) as usize & ((1 << INDEX_BITS) - 1),
            tries: (number >> 1) as u8,
            leg: if number & 1 == 0 { Leg::Client } else { Leg::Backend },
        }
    }

    /// Numbers from here on are nobody's.
    pub(crate) const END: u64 = u64::MAX << 32;

    /// The same connection's, of another leg and try.
    pub(crate) fn with(self, leg: Leg, tries: u8) -> Self {
        Self { leg, tries, ..self }
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Table {
    places: Vec<Place>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Table {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Gives a connection a place.
    pub(crate) fn insert(&mut self, connection: Box<Connection>) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, connection: None });
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        place.connection = Some(connection);
        Token { generation: place.generation, index, tries: 0, leg: Leg::Client }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.places.iter().filter_map(|place| place.connection.as_deref())
    }

    /// The connection that a token names, if it is still there.
    pub(crate) fn get(&mut self, token: Token) -> Option<&mut Connection> {
        let place = self.places.get_mut(token.index).filter(|place| place.generation == token.generation)?;
        place.connection.as_deref_mut()
    }

    /// Takes it out.
    pub(crate) fn remove(&mut self, token: Token) -> Option<Box<Connection>> {
        let place = self.places.get_mut(token.index).filter(|place| place.generation == token.generation)?;
        let connection = place.connection.take()?;
        // The last generation is left out: its numbers are beyond END.
        place.generation = if place.generation == u32::MAX - 1 { 0 } else { place.generation + 1 };
        self.free.push(token.index);
        Some(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_survives_being_a_number(generation in 0..u32::MAX, index in 0_usize..1 << INDEX_BITS, tries: u8, backend: bool) {
            let leg = if backend { Leg::Backend } else { Leg::Client };
            let token = Token { generation, index, tries, leg };
            prop_assert_eq!(Token::of(token.number()), token);
            prop_assert!(token.number() < Token::END);
        }
    }
}
