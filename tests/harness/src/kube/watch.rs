//! A bare watch: the events of one collection as the API server sends them, with the moment each was read. It is what a
//! measured program's own watch is compared with, so it does nothing else.

use std::io::{BufRead, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::api::{Api, Connection};
use super::http::line;
use crate::sys;

/// An open watch.
pub struct Watch {
    connection: Connection,
    /// Bytes of events that are not complete yet.
    pending: Vec<u8>,
}

impl Watch {
    /// Opens a watch; `path` names the collection with its query (`/api/v1/pods?watch=1&resourceVersion=7`).
    pub fn open(api: &Api, path: &str) -> Result<Self> {
        let mut connection = api.connect().context("a watch's connection")?;
        let request = api.request_text("GET", path, "");
        connection.get_mut().write_all(request.as_bytes())?;
        connection.get_mut().flush()?;
        let first = line(&mut connection)?;
        if first.split(' ').nth(1) != Some("200") {
            bail!("GET {path}: {first}");
        }
        let mut chunked = false;
        loop {
            let header = line(&mut connection)?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        if !chunked {
            bail!("GET {path}: this answer is no watch");
        }
        Ok(Self { connection, pending: Vec::new() })
    }

    /// The next event, and when all of it had been read (the clock of [`sys::monotonic`]).
    pub fn next_event(&mut self) -> Result<(Duration, Value)> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let at = sys::monotonic();
                let event = serde_json::from_slice(&self.pending[..end]).context("a watch event")?;
                self.pending.drain(..=end);
                return Ok((at, event));
            }
            let size = line(&mut self.connection)?;
            let size = u64::from_str_radix(&size, 16).with_context(|| format!("chunk size {size:?}"))?;
            if size == 0 {
                bail!("the API server ended the watch");
            }
            (&mut self.connection).take(size).read_to_end(&mut self.pending)?;
            self.connection.read_line(&mut String::new())?; // the line end after a chunk
        }
    }
}
