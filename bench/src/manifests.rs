//! The Kubernetes objects of the measured set-ups, as a folder or for an API server.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheave_harness::address::{self, Pair};
use sheave_harness::objects::{self, Phase, READY};
use sheave_harness::pod::Pod;
use sheave_harness::world::Node;

use crate::server::{ECHO_PORT, PORT, STREAM_PORT};

/// The namespace of everything.
pub(crate) const NAMESPACE: &str = "default";
/// Objects per file: files of a size that people write too.
const PER_FILE: usize = 500;

/// Writes a folder: the node, its two pods, and `services` Services that all select the far side's pod.
pub(crate) fn write(folder: &Path, node: &Node, far: &Pod, client: &Pod, services: u16) -> Result<()> {
    let mut all = vec![objects::node(node)];
    all.extend([far, client].map(|pod| objects::pod(NAMESPACE, pod, &labels(&pod.name), READY)));
    all.extend((1..=services).map(|n| service(n, &far.name, if n == 1 { ALL_PORTS } else { &[PORT] })));
    for (number, part) in all.chunks(PER_FILE).enumerate() {
        let mut text = String::new();
        for object in part {
            // A `String` takes any text, so this can't fail.
            let _ = write!(text, "---\n{object}\n");
        }
        let file = folder.join(format!("objects-{number:03}.yaml"));
        fs::write(&file, text).with_context(|| format!("{}", file.display()))?;
    }
    Ok(())
}

/// Every port of the far side.
pub(crate) const ALL_PORTS: &[u16] = &[PORT, ECHO_PORT, STREAM_PORT];

/// What Services of this crate select by.
fn labels(app: &str) -> Value {
    json!({"app": app})
}

/// The address pair of the `n`th Service. The range's first addresses are the API server's own.
pub(crate) fn vip(n: u16) -> Pair {
    address::cluster_ip(10 + n)
}

/// The `n`th Service: both families, so two frontends per port.
pub(crate) fn service(n: u16, app: &str, ports: &[u16]) -> Value {
    let port = |&number: &u16| objects::port(&format!("p{number}"), "TCP", number, number);
    let ports = json!(ports.iter().map(port).collect::<Vec<_>>());
    objects::service(NAMESPACE, &format!("service-{n}"), vip(n), &labels(app), &ports)
}

/// A Pod by parts.
pub(crate) fn pod(name: &str, app: &str, node: &str, address: Pair, phase: Phase) -> Value {
    objects::bare_pod(NAMESPACE, name, node, &labels(app), &[], Some(address), false, phase)
}

/// A Node behind which there is no machine.
pub(crate) fn bare_node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "zone9"}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_two_families_and_an_address_of_its_own() {
        let (a, b) = (service(1, "far", &[PORT]), service(10_000, "far", ALL_PORTS));
        assert_eq!(a["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
        assert_eq!(b["spec"]["ports"].as_array().unwrap().len(), 3);
        assert_ne!(a["spec"]["clusterIP"], b["spec"]["clusterIP"]);
    }

    #[test]
    fn pods_carry_the_label_that_services_select() {
        let service = service(1, "far", &[PORT]);
        let pod = pod("x", "far", "node1", address::pod(1, 2), READY);
        assert_eq!(pod["metadata"]["labels"], service["spec"]["selector"]);
    }
}
