//! The part of WebSocket (RFC 6455) that a port-forward needs: binary frames from a client, whole messages from a server.
//! Bytes in, bytes out; no sockets here.

/// The opcodes of section 5.2.
const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The largest frame that is taken. Kubelets send 32 KiB.
const MAX_FRAME: u64 = 1 << 20;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A part of the data.
    Data(Vec<u8>),
    /// To be answered by [`pong`] with the same content.
    Ping(Vec<u8>),
    /// The end.
    Close,
}

/// Why the other end is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) &'static str);

/// A frame with data, masked as a client's have to be (section 5.3). `mask` should be new for each frame.
pub(super) fn binary(data: &[u8], mask: [u8; 4]) -> Vec<u8> {
    frame(BINARY, data, mask)
}

/// The answer to a ping.
pub(super) fn pong(data: &[u8], mask: [u8; 4]) -> Vec<u8> {
    frame(PONG, data, mask)
}

fn frame(opcode: u8, data: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = vec![0x80 | opcode];
    match data.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Takes the first frame off `bytes`; nothing where it isn't all there yet. A message in several frames comes as several.
pub(super) fn take(bytes: &mut Vec<u8>) -> Result<Option<Frame>, Broken> {
    let (Some(&first), Some(&second)) = (bytes.first(), bytes.get(1)) else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(Broken("it uses an extension that was not asked for"));
    }
    if second & 0x80 != 0 {
        return Err(Broken("it masks its frames, which only a client does"));
    }
    let (length, head) = match second {
        126 => match bytes.get(2..4) {
            Some(length) => (u64::from(u16::from_be_bytes([length[0], length[1]])), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|length| <[u8; 8]>::try_from(length).ok()) {
            Some(length) => (u64::from_be_bytes(length), 10),
            None => return Ok(None),
        },
        length => (u64::from(length), 2),
    };
    if length > MAX_FRAME {
        return Err(Broken("a frame is too large"));
    }
    let end = head + usize::try_from(length).unwrap_or(usize::MAX);
    if bytes.len() < end {
        return Ok(None);
    }
    let data = bytes[head..end].to_vec();
    bytes.drain(..end);
    match first & 0x0f {
        BINARY | CONTINUATION => Ok(Some(Frame::Data(data))),
        PING => Ok(Some(Frame::Ping(data))),
        // An answer to what was never asked.
        PONG => take(bytes),
        CLOSE => Ok(Some(Frame::Close)),
        _ => Err(Broken("a frame is of an unknown kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same frame as a server sends it.
    fn unmasked(opcode: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = frame(opcode, data, [0; 4]);
        bytes[1] &= 0x7f;
        let head = bytes.len() - data.len();
        bytes.drain(head - 4..head);
        bytes
    }

    #[test]
    fn frames_of_every_size_come_out_as_they_went_in() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let data = vec![7; length];
            let whole = unmasked(BINARY, &data);
            let mut bytes = whole[..whole.len() - 1].to_vec();
            if length > 0 {
                assert_eq!(take(&mut bytes), Ok(None), "{length}: the last byte is missing");
            }
            let mut bytes = [whole, unmasked(PONG, b"x"), unmasked(PING, b"p")].concat();
            assert_eq!(take(&mut bytes), Ok(Some(Frame::Data(data))));
            assert_eq!(take(&mut bytes), Ok(Some(Frame::Ping(b"p".to_vec()))), "the pong is skipped");
            assert_eq!((take(&mut bytes), bytes.len()), (Ok(None), 0));
        }
    }

    #[test]
    fn a_clients_frames_are_masked() {
        // RFC 6455, section 5.7: "Hello", there as text.
        let expected = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(binary(b"Hello", [0x37, 0xfa, 0x21, 0x3d]), expected);
        assert!(take(&mut expected.to_vec()).is_err(), "a server must not");
    }

    #[test]
    fn what_is_no_frame_of_ours_is_refused() {
        assert!(take(&mut vec![0xc2, 0]).is_err(), "compressed");
        assert!(take(&mut vec![0x83, 0]).is_err(), "no such opcode");
        let mut huge = vec![0x82, 127];
        huge.extend((MAX_FRAME + 1).to_be_bytes());
        assert!(take(&mut huge).is_err());
        assert_eq!(take(&mut unmasked(CLOSE, &[3, 232])), Ok(Some(Frame::Close)));
    }
}
