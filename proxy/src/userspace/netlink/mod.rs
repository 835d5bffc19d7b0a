//! A blocking netlink socket: sends messages, waits for the kernel's answer, and says which message failed and why.
//!
//! Used by `nft` (NETLINK_NETFILTER) and by `rules` (NETLINK_ROUTE). It knows nothing of either's messages.

mod message;

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::sys;

pub(crate) use message::{Attributes, HEADER, Messages, attributes};

/// `NLM_F_REQUEST`: from a program to the kernel.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answered even when all is well.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_EXCL`: fails where the object exists.
pub(crate) const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`: makes the object where it doesn't exist.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: adds at the end of a list.
pub(crate) const APPEND: u16 = 0x800;

/// `NLMSG_ERROR`: the kernel's answer to one message.
const KIND_ERROR: u16 = 2;
/// `NLM_F_ACK_TLVS`: attributes follow the answer.
const FLAG_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: what is wrong, in words.
const ATTR_TEXT: u16 = 1;

/// A commit waits for a grace period of every processor; a kernel that needs longer than this for one is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the kernel didn't do what a message asks.
#[derive(Debug, thiserror::Error)]
#[error("message {sequence}: {source}{}", text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default())]
pub(crate) struct NetlinkError {
    /// Number of the message that failed; 0 where the socket itself did.
    pub(crate) sequence: u32,
    /// What the kernel says in words, where it does.
    pub(crate) text: Option<String>,
    /// Its error number.
    pub(crate) source: io::Error,
}

impl From<io::Error> for NetlinkError {
    fn from(source: io::Error) -> Self {
        Self { sequence: 0, text: None, source }
    }
}

impl NetlinkError {
    /// The error number, e.g. `libc::EEXIST`.
    pub(crate) fn code(&self) -> i32 {
        self.source.raw_os_error().unwrap_or_default()
    }
}

/// A netlink socket in the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens one of a family: `libc::NETLINK_NETFILTER` or `libc::NETLINK_ROUTE`.
    ///
    /// # Errors
    /// Where the kernel doesn't have that family.
    pub(crate) fn open(family: i32) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(family)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Words beside error numbers, and answers without a copy of the question: neither is needed for it to work.
        let _ = sys::set_option(&socket, libc::SOL_NETLINK, sys::NETLINK_EXT_ACK, 1);
        let _ = sys::set_option(&socket, libc::SOL_NETLINK, sys::NETLINK_CAP_ACK, 1);
        Ok(Self { socket })
    }

    /// Sends messages, of which `last` carries the ACK flag and comes last, and waits until the kernel has answered it.
    ///
    /// # Errors
    /// The first answer that is an error. A batch of nftables messages is then undone as a whole.
    pub(crate) fn transact(&self, messages: &Messages, last: u32) -> Result<(), NetlinkError> {
        let bytes = messages.as_bytes();
        // The kernel takes a batch as one packet, and wants room for its bookkeeping too. Privileged, so over the limit.
        let room = i32::try_from(bytes.len().saturating_mul(2)).unwrap_or(i32::MAX).max(1 << 18);
        sys::set_option(&self.socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room)?;
        let sent = self.socket.send(bytes)?;
        if sent != bytes.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        let first = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let mut failed = None;
        let mut buffer = vec![0; 32 << 10];
        loop {
            let length = match (&self.socket).read(&mut buffer) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed.unwrap_or_else(|| e.into())),
            };
            for answer in answers(&buffer[..length]) {
                let mine = answer.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if !mine {
                    continue; // of an earlier transaction that was given up
                }
                if answer.code != 0 && failed.is_none() {
                    failed = Some(answer.error());
                }
                // A batch that fails as a whole is answered once, under its first number.
                if answer.sequence == last || (answer.code != 0 && answer.sequence == first) {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }
}

/// One NLMSG_ERROR.
struct Answer<'a> {
    sequence: u32,
    code: i32,
    text: Option<&'a [u8]>,
}

impl Answer<'_> {
    fn error(&self) -> NetlinkError {
        let text = self.text.map(|t| String::from_utf8_lossy(t).trim_end_matches('\0').to_owned());
        NetlinkError { sequence: self.sequence, text, source: io::Error::from_raw_os_error(-self.code) }
    }
}

/// The answers in one datagram from the kernel. What is cut off or of another type is skipped.
fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let word =
        |bytes: &[u8], at: usize| -> Option<u32> { Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    std::iter::from_fn(move || {
        loop {
            let length = word(bytes, 0)? as usize;
            let message = bytes.get(..length).filter(|m| m.len() >= HEADER)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            let kind_flags = word(message, 4)?.to_ne_bytes();
            let kind = u16::from_ne_bytes([kind_flags[0], kind_flags[1]]);
            let flags = u16::from_ne_bytes([kind_flags[2], kind_flags[3]]);
            if kind != KIND_ERROR {
                continue;
            }
            let code = word(message, HEADER)? as i32;
            let tail = message.get(HEADER + 4 + HEADER..).filter(|_| flags & FLAG_TLVS != 0).unwrap_or_default();
            let text = attributes(tail).find(|(kind, _)| *kind == ATTR_TEXT).map(|(_, text)| text);
            return Some(Answer { sequence: word(message, 8)?, code, text });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_message_its_error_and_the_kernels_words() {
        let mut messages = Messages::new(41);
        let mut fixed = (-libc::EEXIST).to_ne_bytes().to_vec();
        fixed.extend_from_slice(&[0; HEADER]);
        messages.push(KIND_ERROR, FLAG_TLVS, &fixed, |a| a.string(ATTR_TEXT, "already there"));
        messages.push(KIND_ERROR, 0, &[0; 4 + HEADER], |_| ());
        let found: Vec<_> = answers(messages.as_bytes()).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].error().to_string(), "message 41: File exists (os error 17) (already there)");
        assert_eq!((found[1].sequence, found[1].code), (42, 0));
    }

    #[test]
    fn a_cut_off_answer_is_skipped() {
        assert_eq!(answers(&[20, 0, 0, 0, 2, 0]).count(), 0);
        assert_eq!(answers(&[0; 64]).count(), 0);
    }
}
