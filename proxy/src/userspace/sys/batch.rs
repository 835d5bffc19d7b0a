//! Datagrams by the batch: `recvmmsg` with the original destination of each, and `sendmmsg`.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

/// Datagrams in one call.
pub(crate) const BATCH: usize = 32;
/// The largest payload of UDP over IPv4 and IPv6 alike fits, so nothing is ever cut off.
const BUFFER: usize = 64 << 10;
/// Room for a control message with a `sockaddr_in6`.
const CONTROL: usize = 64;

/// Where a control message may start: as `struct cmsghdr` is aligned.
#[repr(align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// Buffers that a thread receives into.
pub(crate) struct ReceiveBatch {
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    lengths: [(usize, usize, usize); BATCH],
    count: usize,
}

/// One datagram that was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    /// Who sent it. `None` on a connected socket, where the kernel names nobody.
    pub(crate) from: Option<SocketAddr>,
    /// Where it was sent to, on a socket that asks for it.
    pub(crate) to: Option<SocketAddr>,
    /// The payload.
    pub(crate) payload: &'a [u8],
}

impl ReceiveBatch {
    /// Takes 2 MiB of address space; memory only as far as datagrams reach.
    pub(crate) fn new() -> Self {
        // SAFETY: all zeroes is a valid `sockaddr_storage`: plain numbers and padding.
        let name: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        Self {
            bytes: vec![0; BATCH * BUFFER],
            names: vec![name; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
            lengths: [(0, 0, 0); BATCH],
            count: 0,
        }
    }

    /// Receives what is there, at most a batch, without waiting. Returns how many.
    ///
    /// # Errors
    /// `WouldBlock` where there is none; on a connected socket also what the network said about earlier datagrams.
    pub(crate) fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.count = 0;
        // SAFETY: all zeroes is a valid value of both: null pointers, zero lengths.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
        for (index, buffer) in self.bytes.chunks_exact_mut(BUFFER).enumerate() {
            parts[index] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER };
            let header = &mut headers[index].msg_hdr;
            header.msg_iov = &raw mut parts[index];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
        }
        let fd = socket.as_fd().as_raw_fd();
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: each header points to its own buffer, name and control room of the lengths it says, all of which live
        // and are not otherwise used until the call returns.
        let count = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), BATCH as u32, flags, std::ptr::null_mut()) };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (lengths, header) in self.lengths.iter_mut().zip(&headers[..self.count]) {
            let length = (header.msg_len as usize).min(BUFFER);
            *lengths = (length, header.msg_hdr.msg_namelen as usize, header.msg_hdr.msg_controllen.min(CONTROL));
        }
        Ok(self.count)
    }

    /// What the last call received.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = Received<'_>> {
        (0..self.count).map(|index| {
            let (length, name, control) = self.lengths[index];
            Received {
                from: if name == 0 { None } else { address(storage_bytes(&self.names[index])) },
                to: original_destination(&self.controls[index].0[..control]),
                payload: &self.bytes[index * BUFFER..][..length],
            }
        })
    }
}

fn storage_bytes(storage: &libc::sockaddr_storage) -> &[u8] {
    // SAFETY: the value was zeroed when it was made, so all of its bytes are initialized; any byte is a valid u8.
    unsafe { std::slice::from_raw_parts((&raw const *storage).cast(), size_of::<libc::sockaddr_storage>()) }
}

/// A `sockaddr_in` or `sockaddr_in6` as an address. The flow label is left out: replies don't repeat it.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    if family == libc::AF_INET {
        let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
        return Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into());
    }
    let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
    let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
    (family == libc::AF_INET6).then(|| SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
}

/// Finds `IP_ORIGDSTADDR` or `IPV6_ORIGDSTADDR` among control messages: length (8 bytes), level, type, data.
fn original_destination(mut control: &[u8]) -> Option<SocketAddr> {
    const HEADER: usize = 16;
    loop {
        let length = usize::from_ne_bytes(control.get(..8)?.try_into().ok()?);
        let level = i32::from_ne_bytes(control.get(8..12)?.try_into().ok()?);
        let kind = i32::from_ne_bytes(control.get(12..16)?.try_into().ok()?);
        let known = [(libc::SOL_IP, libc::IP_ORIGDSTADDR), (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)];
        if known.contains(&(level, kind)) {
            return address(control.get(HEADER..length)?).map(|mut to| {
                if let SocketAddr::V6(v6) = &mut to {
                    v6.set_scope_id(0); // a frontend has none
                }
                to
            });
        }
        if length < HEADER {
            return None;
        }
        control = control.get(length.next_multiple_of(8)..)?;
    }
}

/// One datagram to send: two pieces that are sent as one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    /// A header, or nothing.
    pub(crate) head: &'a [u8],
    /// The rest.
    pub(crate) body: &'a [u8],
    /// Where to, on a socket that isn't connected.
    pub(crate) to: Option<SocketAddr>,
}

/// Sends datagrams without waiting, at most a batch. Returns how many were taken; fewer than given means that the next one
/// failed, which the next call says.
///
/// # Errors
/// Of the first datagram.
pub(crate) fn send_batch(socket: &impl AsFd, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
    let count = datagrams.len().min(BATCH);
    // SAFETY: all zeroes is a valid value of both: null pointers, zero lengths.
    let (mut parts, mut headers): ([[libc::iovec; 2]; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
    let names: [Option<socket2::SockAddr>; BATCH] =
        std::array::from_fn(|index| datagrams.get(index).and_then(|d| d.to).map(socket2::SockAddr::from));
    for (index, datagram) in datagrams[..count].iter().enumerate() {
        let part = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        parts[index] = [part(datagram.head), part(datagram.body)];
        let header = &mut headers[index].msg_hdr;
        header.msg_iov = parts[index].as_mut_ptr();
        header.msg_iovlen = 2;
        if let Some(name) = &names[index] {
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
        }
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the first `count` headers point to pieces and names of the lengths they say, which live until the call
    // returns, and sendmmsg writes to none of them but the headers' own `msg_len`.
    let sent =
        unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_batch_arrives_whole_and_in_order() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        crate::userspace::sys::set_option(&receiver, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1).unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let payloads: Vec<Vec<u8>> = (0..40_usize).map(|n| vec![n as u8; n * 37]).collect();
        let datagrams: Vec<_> = payloads
            .iter()
            .map(|p| Outgoing { head: &p[..p.len() / 2], body: &p[p.len() / 2..], to: Some(to) })
            .collect();
        assert_eq!(send_batch(&sender, &datagrams).unwrap(), BATCH);
        assert_eq!(send_batch(&sender, &datagrams[BATCH..]).unwrap(), 8);
        let mut batch = ReceiveBatch::new();
        let mut seen = Vec::new();
        while seen.len() < payloads.len() {
            batch.receive(&receiver).unwrap();
            for datagram in batch.datagrams() {
                assert_eq!(datagram.from, Some(sender.local_addr().unwrap()));
                assert_eq!(datagram.to, Some(to));
                seen.push(datagram.payload.to_vec());
            }
        }
        assert_eq!(seen, payloads);
        assert_eq!(batch.receive(&receiver).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(batch.datagrams().count(), 0);
    }
}
