//! Prometheus text, read from a node's proxy or from a controller, and what can be asked of it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;
use crate::sys;
use crate::world::Node;

/// A scrape: each line's name with its labels, and its value.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    lines: Vec<(String, f64)>,
}

impl Metrics {
    /// Reads Prometheus text.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self { lines: text.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect() }
    }

    /// The sum of a metric's lines that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.named(name, labels).map(|(_, value)| value).sum()
    }

    /// Whether there is such a line at all.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.named(name, labels).next().is_some()
    }

    /// Lines whose text contains `part`.
    pub fn lines(&self, part: &str) -> Vec<String> {
        let wanted = self.lines.iter().filter(|(name, _)| name.contains(part));
        wanted.map(|(name, value)| format!("{name} {value}")).collect()
    }

    fn named<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = (&'a str, f64)> {
        self.lines.iter().filter_map(move |(line, value)| {
            let rest = line.strip_prefix(name)?;
            let fits = rest.is_empty() || rest.starts_with('{');
            let labelled = labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")));
            (fits && labelled).then_some((line.as_str(), *value))
        })
    }
}

/// An HTTP/1.1 GET over TCP from within a namespace: status and body.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let request = request("GET", path);
    netns
        .run(move || {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            exchange(stream, &request)
        })
        .with_context(|| format!("GET http://{address}{path}"))
}

/// An HTTP/1.1 request over a unix socket: status and body.
pub fn ask_socket(socket: &Path, method: &str, path: &str) -> Result<(u16, String)> {
    let ask = || -> Result<(u16, String)> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        exchange(stream, &request(method, path))
    };
    ask().with_context(|| format!("{method} {path} on {}", socket.display()))
}

fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Result<(u16, String)> {
    stream.write_all(request.as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    crate::kube::http::parse(&text)
}

/// The metrics at an address, asked from where the calling thread is.
pub fn read(address: SocketAddr) -> Result<Metrics> {
    let ask = || -> Result<(u16, String)> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        exchange(stream, &request("GET", "/metrics"))
    };
    let (status, body) = ask().with_context(|| format!("GET http://{address}/metrics"))?;
    ensure!(status == 200, "metrics at {address}: {status}: {body}");
    Ok(Metrics::parse(&body))
}

/// A node's proxy' metrics.
pub fn proxy(node: &Node) -> Result<Metrics> {
    let (status, body) = get(&node.netns, SocketAddr::from(([127, 0, 0, 1], 15020)), "/metrics")?;
    ensure!(status == 200, "metrics of {}: {status}: {body}", node.name);
    Ok(Metrics::parse(&body))
}

/// How many programs are attached at a node's cgroup, of every type that the product may use.
pub fn attached(node: &Node) -> Result<u32> {
    /// enum bpf_attach_type: the cgroup hooks for sockets and addresses.
    const TYPES: [u32; 21] = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 19, 20, 21, 22, 29, 30, 31, 32, 34];
    let cgroup = File::open(&node.cgroup).context("cgroup of the node")?;
    let mut count = 0;
    for kind in TYPES {
        count += sys::attached_programs(&cgroup, kind).with_context(|| format!("BPF_PROG_QUERY of type {kind}"))?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_take_labels_and_whole_names_only() {
        let text = "# HELP a x\na{k=\"1\",l=\"2\"} 3\na{k=\"2\"} 4\na_total 9\nb 1e3\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a", &[]), 7.0);
        assert_eq!(metrics.sum("a", &[("k", "1")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 1000.0);
        assert!(!metrics.has("a", &[("k", "3")]));
    }
}
