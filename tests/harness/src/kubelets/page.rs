//! A page of a program that serves HTTP in the cluster's world.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::metrics;

/// An HTTP GET from this process' own network: status and body.
///
/// # Errors
/// Where nobody answers there within seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let ask = || {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        metrics::exchange(stream, &metrics::request("GET", path))
    };
    ask().with_context(|| format!("GET http://{address}{path}"))
}
