//! Which endpoints of a Service port take new connections. SEMANTICS sections 1 and 3, policy Cluster.

use std::net::SocketAddr;

use crate::Service;

/// The backends of port number `index` in one family: every ready endpoint, or, where none is ready, those that still
/// serve while they terminate (KEP-1669). Empty means that new connections are refused.
pub fn choose(service: &Service, index: usize, v4: bool) -> Vec<SocketAddr> {
    let pick = |usable: fn(&crate::Endpoint) -> bool| -> Vec<SocketAddr> {
        let endpoints = service.endpoints.iter();
        endpoints.filter(|e| e.address.is_ipv4() == v4 && usable(e)).filter_map(|e| e.socket(index)).collect()
    };
    let ready = pick(|e| e.ready);
    if ready.is_empty() { pick(|e| e.serving && e.terminating) } else { ready }
}
