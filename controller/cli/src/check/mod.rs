//! `sheave check`: what would keep Sheave from working, or does, in a cluster or on a node; before an installation and after.
//!
//! It looks for itself where it can, so that it says the same whether or not anything of Sheave runs.

mod certificate;
mod cluster;
mod controllers;
mod installed;
mod kernel;
mod mounts;
mod nftables;
mod node;
mod ports;

use crate::Report;
use crate::args::{CheckArgs, Common};

/// The oldest kernel: cookies of network namespaces for programs, and what proxies ask of it.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// Looks and says what was found.
///
/// # Errors
/// Where the API server can't be asked at all.
pub(crate) async fn run(common: &Common, wanted: &CheckArgs) -> anyhow::Result<Report> {
    let findings = if wanted.node { node::look(wanted) } else { cluster::look(common).await? };
    Ok(Report { text: String::new(), json: serde_json::json!({}), findings })
}

/// The first two numbers of a version such as `5.14.0-70.el9` or `v1.36.3`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_kernels_and_api_servers_write_them() {
        assert_eq!(version("5.14.0-70.13.1.el9_0.x86_64"), Some((5, 14)));
        assert_eq!(version("v1.36.3"), Some((1, 36)));
        assert_eq!(version("2.6.78"), Some((2, 6)));
        assert_eq!(version("unknown"), None);
    }
}
