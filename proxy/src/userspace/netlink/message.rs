//! Netlink messages and attributes as bytes: headers, padding and nesting, and nothing of what they mean.

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// `NLA_F_NESTED`: the attribute's value is attributes.
const NESTED: u16 = 0x8000;

/// Messages one after another, as one datagram to the kernel.
#[derive(Debug)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    next: u32,
}

impl Messages {
    /// No message yet; the first one gets the sequence number `first`.
    pub(crate) fn new(first: u32) -> Self {
        Self { bytes: Vec::with_capacity(4096), next: first }
    }

    /// Adds a message of a type with flags (`NLM_F_*`), the family's fixed header and its attributes. Returns its number.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, fixed: &[u8], body: impl FnOnce(&mut Attributes<'_>)) -> u32 {
        let start = self.bytes.len();
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        body(&mut Attributes { bytes: &mut self.bytes });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        sequence
    }

    /// Sets more flags in the message that starts at an offset.
    pub(crate) fn add_flags(&mut self, start: usize, flags: u16) {
        let at = start + 6;
        let old = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// All of them.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number that the next message will get.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }
}

/// Writes attributes at the end of a message.
#[derive(Debug)]
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    /// An attribute with any bytes as its value. Values are below 64 KiB, because the length field has 16 bits.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.raw(kind, |bytes| bytes.extend_from_slice(value));
    }

    /// A number in network order, as nftables wants them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A number in the machine's order, as rtnetlink wants them.
    pub(crate) fn ne32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A string with its terminating zero.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        self.raw(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        });
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.raw(kind | NESTED, |bytes| body(&mut Attributes { bytes }));
    }

    fn raw(&mut self, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0_u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        value(self.bytes);
        let length = self.bytes.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "an attribute of {length} bytes");
        self.bytes[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        pad(self.bytes);
    }
}

/// Messages and attributes start at multiples of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// One attribute read back: its type without flags, and its value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_has_its_length_type_flags_and_number() {
        let mut messages = Messages::new(7);
        messages.push(0x0a00, 0x0405, &[1, 0, 0, 0], |a| {
            a.string(1, "sheave");
            a.nest(2, |a| a.be32(3, 5));
        });
        let mut expected = vec![];
        expected.extend_from_slice(&44_u32.to_ne_bytes());
        expected.extend_from_slice(&0x0a00_u16.to_ne_bytes());
        expected.extend_from_slice(&0x0405_u16.to_ne_bytes());
        expected.extend_from_slice(&7_u32.to_ne_bytes());
        expected.extend_from_slice(&[0; 4]);
        expected.extend_from_slice(&[1, 0, 0, 0]);
        expected.extend_from_slice(&11_u16.to_ne_bytes());
        expected.extend_from_slice(&1_u16.to_ne_bytes());
        expected.extend_from_slice(b"sheave\0\0");
        expected.extend_from_slice(&12_u16.to_ne_bytes());
        expected.extend_from_slice(&0x8002_u16.to_ne_bytes());
        expected.extend_from_slice(&8_u16.to_ne_bytes());
        expected.extend_from_slice(&3_u16.to_ne_bytes());
        expected.extend_from_slice(&[0, 0, 0, 5]);
        assert_eq!(messages.as_bytes(), expected);
        assert_eq!(messages.next(), 8);
    }

    proptest! {
        #[test]
        fn attributes_read_back_as_written(values in prop::collection::vec((1_u16..100, prop::collection::vec(any::<u8>(), 0..50)), 0..20)) {
            let mut messages = Messages::new(1);
            messages.push(1, 1, &[], |a| values.iter().for_each(|(kind, value)| a.bytes(*kind, value)));
            let read: Vec<_> = attributes(&messages.as_bytes()[HEADER..]).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(attributes(&bytes).count() <= 16);
        }
    }
}
