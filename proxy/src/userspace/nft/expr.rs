//! Expressions of nftables rules, and how they are written. Numbers are those of `linux/netfilter/nf_tables.h`.

use crate::userspace::netlink::Attributes;

/// One step of a rule. Registers are counted in words of four bytes from `NFT_REG32_00`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads a fact about the packet.
    Meta(Meta, u32),
    /// Writes the packet's mark.
    SetMark(u32),
    /// Loads a fact about its connection.
    Ct(Ct, u32),
    /// Writes the connection's mark.
    SetCtMark(u32),
    /// Loads bytes of a header.
    Payload(Header, u32, u32, u32),
    /// `register = (register & mask) ^ flip`.
    Bits { register: u32, mask: Vec<u8>, flip: Vec<u8> },
    /// Goes on where the register's first bytes are (or, negated, are not) these.
    Compare { register: u32, equal: bool, value: Vec<u8> },
    /// Goes on where a set has what starts at the register.
    Lookup(&'static str, u32),
    /// Loads whether the packet's socket is transparent; stops the rule where it has none.
    SocketTransparent(u32),
    /// Loads whether the packet's socket is bound to every address (Linux 5.10); stops the rule where it has none.
    SocketWildcard(u32),
    /// Puts bytes into a register.
    Load(u32, Vec<u8>),
    /// Hands the packet to the socket that listens at the address and port in two registers.
    Tproxy { v4: bool, address: u32, port: u32 },
    /// Answers with a TCP reset.
    Reset,
    /// Answers with "port unreachable" of the packet's family.
    Unreachable,
    /// Ends the evaluation.
    Verdict(Verdict),
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is dropped.
    Drop,
    /// It leaves this table.
    Accept,
    /// It goes on in another chain and doesn't come back.
    Goto(&'static str),
}

/// `enum nft_meta_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    /// The packet's mark, in the machine's order.
    Mark = 3,
    /// IPv4 or IPv6.
    Family = 15,
    /// TCP or UDP.
    Protocol = 16,
}

/// `enum nft_ct_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ct {
    /// `NF_CT_STATE_BIT`s.
    State = 0,
    /// 0 as the first packet went, 1 the other way.
    Direction = 1,
    /// `IPS_*` bits.
    Status = 2,
    /// The connection's mark.
    Mark = 3,
}

/// `enum nft_payload_bases`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// IPv4 or IPv6.
    Network = 1,
    /// TCP or UDP.
    Transport = 2,
}

/// `NFT_REG32_00`.
const WORD_0: u32 = 8;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const GOTO: u32 = -4_i32 as u32;

impl Expr {
    /// The kernel's name of it.
    const fn name(&self) -> &'static str {
        match self {
            Self::Meta(..) | Self::SetMark(_) => "meta",
            Self::Ct(..) | Self::SetCtMark(_) => "ct",
            Self::Payload(..) => "payload",
            Self::Bits { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup(..) => "lookup",
            Self::SocketTransparent(_) | Self::SocketWildcard(_) => "socket",
            Self::Load(..) | Self::Verdict(_) => "immediate",
            Self::Tproxy { .. } => "tproxy",
            Self::Reset | Self::Unreachable => "reject",
        }
    }

    /// Writes it as one element of a rule's list.
    pub(crate) fn write(&self, list: &mut Attributes<'_>) {
        const ELEMENT: u16 = 1;
        list.nest(ELEMENT, |e| {
            e.string(1, self.name());
            e.nest(2, |d| self.data(d));
        });
    }

    fn data(&self, d: &mut Attributes<'_>) {
        match self {
            Self::Meta(key, to) => {
                d.be32(2, *key as u32);
                d.be32(1, WORD_0 + to);
            }
            Self::SetMark(from) => {
                d.be32(2, Meta::Mark as u32);
                d.be32(3, WORD_0 + from);
            }
            Self::Ct(key, to) => {
                d.be32(2, *key as u32);
                d.be32(1, WORD_0 + to);
            }
            Self::SetCtMark(from) => {
                d.be32(2, Ct::Mark as u32);
                d.be32(4, WORD_0 + from);
            }
            Self::Payload(base, offset, length, to) => {
                d.be32(1, WORD_0 + to);
                d.be32(2, *base as u32);
                d.be32(3, *offset);
                d.be32(4, *length);
            }
            Self::Bits { register, mask, flip } => {
                d.be32(1, WORD_0 + register);
                d.be32(2, WORD_0 + register);
                d.be32(3, mask.len() as u32);
                d.nest(4, |v| v.bytes(1, mask));
                d.nest(5, |v| v.bytes(1, flip));
            }
            Self::Compare { register, equal, value } => {
                d.be32(1, WORD_0 + register);
                d.be32(2, u32::from(!*equal));
                d.nest(3, |v| v.bytes(1, value));
            }
            Self::Lookup(set, from) => {
                d.string(1, set);
                d.be32(2, WORD_0 + from);
            }
            Self::SocketTransparent(to) => {
                d.be32(1, 0);
                d.be32(2, WORD_0 + to);
            }
            Self::SocketWildcard(to) => {
                d.be32(1, 2);
                d.be32(2, WORD_0 + to);
            }
            Self::Load(to, value) => {
                d.be32(1, WORD_0 + to);
                d.nest(2, |v| v.bytes(1, value));
            }
            Self::Tproxy { v4, address, port } => {
                d.be32(1, if *v4 { libc::NFPROTO_IPV4 as u32 } else { libc::NFPROTO_IPV6 as u32 });
                d.be32(2, WORD_0 + address);
                d.be32(3, WORD_0 + port);
            }
            Self::Reset => {
                d.be32(1, 1);
                d.bytes(2, &[0]);
            }
            Self::Unreachable => {
                d.be32(1, 2);
                d.bytes(2, &[1]);
            }
            Self::Verdict(verdict) => {
                d.be32(1, 0);
                d.nest(2, |v| v.nest(2, |v| verdict.write(v)));
            }
        }
    }
}

impl Verdict {
    fn write(self, v: &mut Attributes<'_>) {
        match self {
            Self::Drop => v.be32(1, DROP),
            Self::Accept => v.be32(1, ACCEPT),
            Self::Goto(chain) => {
                v.be32(1, GOTO);
                v.string(2, chain);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userspace::netlink::{HEADER, Messages};

    /// What `nft` 1.1 itself sends for the same expression, seen with strace.
    #[test]
    fn an_expression_is_written_as_the_kernel_reads_it() {
        let mut messages = Messages::new(1);
        messages.push(0, 0, &[], |a| Expr::Lookup("vips4", 0).write(a));
        let expected = [
            &[40, 0, 1, 0x80, 11, 0, 1, 0][..],
            b"lookup\0\0",
            &[24, 0, 2, 0x80, 10, 0, 1, 0],
            b"vips4\0\0\0",
            &[8, 0, 2, 0, 0, 0, 0, 8],
        ]
        .concat();
        assert_eq!(&messages.as_bytes()[HEADER..], expected);
    }

    #[test]
    fn a_goto_names_its_chain() {
        let mut messages = Messages::new(1);
        messages.push(0, 0, &[], |a| Expr::Verdict(Verdict::Goto("serve")).write(a));
        let bytes = messages.as_bytes();
        assert!(bytes.windows(4).any(|w| w == [0xff, 0xff, 0xff, 0xfc]));
        assert!(bytes.windows(6).any(|w| w == b"serve\0"));
    }
}
