//! Which source address the backend sees: SEMANTICS section 2, columns Cluster/Cluster.

use std::net::{IpAddr, SocketAddr};

use sheave_model::{FrontendKind, NodeFacts};

/// Whether the upstream socket takes the client's address, instead of the node's.
///
/// Only a pod of this node keeps its address, towards a ClusterIP: its replies come back through this node, whichever
/// node the backend is on. Where it reaches itself (hairpin) it sees the node, because a packet from its own address
/// would come back to a socket that is not the one it waits on.
pub(crate) fn keeps_client(kind: FrontendKind, client: IpAddr, backend: SocketAddr, node: Option<&NodeFacts>) -> bool {
    let client = client.to_canonical();
    kind == FrontendKind::ClusterIp
        && client != backend.ip()
        && node.is_some_and(|node| node.pods.binary_search(&client).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_source_addresses() {
        let pods = ["10.1.0.5", "10.1.0.6", "fd01::5"].map(|ip| ip.parse().unwrap()).to_vec();
        let addresses = vec!["10.0.0.1".parse().unwrap()];
        let node = NodeFacts { pods, addresses, ..NodeFacts::default() };
        let (pod, on_node, outside) = ("10.1.0.5", "10.0.0.1", "10.9.9.9");
        let (other, remote) = ("10.1.0.6:8080", "10.2.0.7:8080");
        let kinds = [FrontendKind::NodePort, FrontendKind::LoadBalancer, FrontendKind::ExternalIp];
        let keeps = |kind, client: &str, backend: &str| {
            keeps_client(kind, client.parse().unwrap(), backend.parse().unwrap(), Some(&node))
        };
        for backend in [other, remote] {
            assert!(keeps(FrontendKind::ClusterIp, pod, backend), "pod -> ClusterIP, {backend}");
            assert!(!keeps(FrontendKind::ClusterIp, on_node, backend));
            assert!(!keeps(FrontendKind::ClusterIp, outside, backend));
            for kind in kinds {
                for client in [pod, on_node, outside] {
                    assert!(!keeps(kind, client, backend), "{client} -> {kind}, {backend}");
                }
            }
        }
        assert!(!keeps(FrontendKind::ClusterIp, pod, "10.1.0.5:8080"), "hairpin");
        assert!(keeps(FrontendKind::ClusterIp, "fd01::5", "[fd02::1]:80"));
        assert!(!keeps_client(FrontendKind::ClusterIp, pod.parse().unwrap(), other.parse().unwrap(), None));
    }
}
