//! HTTP/1.1 answers: head, then a body by length, in chunks, or to the end of the stream.

use std::io::{BufRead, Cursor, Read};

use anyhow::{Context, Result, bail};

/// Reads one answer: its status and its body.
pub(crate) fn read(reader: &mut impl BufRead) -> Result<(u16, String)> {
    let first = line(reader)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status: u16 = status.with_context(|| format!("not an HTTP answer: {first:?}"))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = line(reader)?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<u64>().context("content-length")?);
        }
        chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
    }
    let mut body = Vec::new();
    match length {
        _ if chunked => chunks(reader, &mut body)?,
        Some(length) => {
            let read = reader.take(length).read_to_end(&mut body)?;
            if read as u64 != length {
                bail!("the answer ended after {read} of {length} bytes");
            }
        }
        None => drop(reader.read_to_end(&mut body)?),
    }
    Ok((status, String::from_utf8(body).context("an answer that is not UTF-8")?))
}

/// Reads one answer that is all there.
pub(crate) fn parse(bytes: &[u8]) -> Result<(u16, String)> {
    read(&mut Cursor::new(bytes))
}

/// The next line, without its end.
pub(super) fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        bail!("the connection was closed before the answer");
    }
    Ok(line.trim_end().to_owned())
}

fn chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let size = line(reader)?;
        let size = u64::from_str_radix(size.split(';').next().unwrap_or(""), 16).context("chunk size")?;
        reader.take(size).read_to_end(body)?;
        line(reader)?;
        if size == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_come_by_length_in_chunks_or_to_the_end() {
        let answer = |text: &str| parse(text.as_bytes()).unwrap();
        assert_eq!(answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore"), (200, "ok".into()));
        let chunked = "HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(answer(chunked), (404, "abcd".into()));
        assert_eq!(answer("HTTP/1.0 503 x\r\n\r\nno"), (503, "no".into()));
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").is_err());
    }
}
