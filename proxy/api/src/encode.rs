//! Model to messages. Nothing can fail here.

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use sheave_model::{AppProtocol, ClusterFacts, Endpoint, NodeFacts, Policy, Protocol, Service, ServicePort};

use crate::name::service_name;
use crate::proto;

pub(crate) fn service(service: &Service) -> proto::Service {
    proto::Service {
        name: Some(service_name(&service.key)),
        created: service.created,
        cluster_ips: addresses(&service.cluster_ips),
        external_ips: addresses(&service.external_ips),
        load_balancer_ips: addresses(&service.load_balancer_ips),
        internal_local: service.internal_policy == Policy::Local,
        external_local: service.external_policy == Policy::Local,
        affinity_seconds: service.affinity.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
        source_ranges: service.source_ranges.iter().map(prefix).collect(),
        ports: service.ports.iter().map(port).collect(),
        endpoints: service.endpoints.iter().map(endpoint).collect(),
    }
}

pub(crate) fn node(node: &NodeFacts) -> proto::Node {
    proto::Node {
        name: node.name.to_string(),
        zone: node.zone.as_deref().unwrap_or_default().to_owned(),
        addresses: addresses(&node.addresses),
        pods: addresses(&node.pods),
    }
}

pub(crate) fn cluster(cluster: &ClusterFacts) -> proto::Cluster {
    proto::Cluster { service_cidrs: cluster.service_cidrs.iter().map(prefix).collect() }
}

fn port(port: &ServicePort) -> proto::ServicePort {
    let protocol = match port.protocol {
        Protocol::Tcp => proto::Protocol::Tcp,
        Protocol::Udp => proto::Protocol::Udp,
    };
    let app = match port.app {
        AppProtocol::Opaque => proto::AppProtocol::Opaque,
        AppProtocol::Http => proto::AppProtocol::Http,
    };
    proto::ServicePort {
        name: port.name.to_string(),
        protocol: protocol.into(),
        port: port.port.into(),
        node_port: port.node_port.unwrap_or_default().into(),
        app_protocol: app.into(),
    }
}

fn endpoint(endpoint: &Endpoint) -> proto::Endpoint {
    proto::Endpoint {
        address: address(endpoint.address),
        ports: endpoint.ports.iter().map(|&port| port.into()).collect(),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        node: endpoint.node.as_deref().unwrap_or_default().to_owned(),
        zone: endpoint.zone.as_deref().unwrap_or_default().to_owned(),
    }
}

fn prefix(net: &IpNet) -> proto::Prefix {
    proto::Prefix { address: address(net.addr()), length: net.prefix_len().into() }
}

fn addresses(addresses: &[IpAddr]) -> Vec<Bytes> {
    addresses.iter().copied().map(address).collect()
}

fn address(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}
