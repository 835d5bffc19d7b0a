//! The router's nftables rules: a table of its own, replaced as a whole.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::objects::Balanced;

/// Everything: an address' open ports go to a node each, chosen at random for each connection (or by the client's address);
/// what is left for our addresses is dropped. Clients that are nodes or pods take the router's address, or the answer would
/// not come back this way.
pub(crate) fn text(balanced: &[Balanced]) -> String {
    let mut ports = String::new();
    for it in balanced.iter().filter(|it| !it.nodes.is_empty()) {
        let (ip, count) = (if it.address.is_ipv6() { "ip6" } else { "ip" }, it.nodes.len());
        let choice =
            if it.sticky { format!("jhash {ip} saddr mod {count}") } else { format!("numgen random mod {count}") };
        let nodes: Vec<_> = it.nodes.iter().enumerate().map(|(number, node)| format!("{number} : {node}")).collect();
        let _ = writeln!(
            ports,
            "    {ip} daddr {} {} dport {} dnat {ip} to {choice} map {{ {} }} : {}",
            it.address,
            it.protocol,
            it.port,
            nodes.join(", "),
            it.node_port
        );
    }
    format!(
        "table inet cloud\ndelete table inet cloud\ntable inet cloud {{
  chain balance {{
    type nat hook prerouting priority dstnat
{ports}  }}
  chain closed {{
    type filter hook prerouting priority dstnat + 10
    ip daddr 10.89.0.0/24 drop
    ip6 daddr fd00:89::/64 drop
  }}
  chain back {{
    type nat hook postrouting priority srcnat
    ct status dnat ip saddr != 10.92.0.0/24 masquerade
    ct status dnat ip6 saddr != fd00:92::/64 masquerade
  }}
}}\n"
    )
}

/// Replaces the table.
pub(crate) fn apply(text: &str) -> Result<()> {
    let mut nft =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("nft")?;
    nft.stdin.take().context("nft's input")?.write_all(text.as_bytes())?;
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}\n{text}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
