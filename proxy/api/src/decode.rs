//! Messages to model. Whatever could mislead the data plane is refused here, once, with the field's name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use sheave_model::{AppProtocol, ClusterFacts, Endpoint, NodeFacts, Policy, Protocol, Service, ServicePort};

use crate::name::service_key;
use crate::{WireError, proto};

pub(crate) fn service(message: proto::Service) -> Result<Service, WireError> {
    let ports = message.ports.iter().map(port).collect::<Result<Vec<_>, _>>()?;
    let endpoints = message.endpoints.iter().map(|e| endpoint(e, ports.len())).collect::<Result<_, _>>()?;
    Ok(Service {
        key: service_key(&message.name.ok_or(WireError::NoName)?)?,
        created: message.created,
        cluster_ips: addresses("cluster_ips", &message.cluster_ips)?,
        external_ips: addresses("external_ips", &message.external_ips)?,
        load_balancer_ips: addresses("load_balancer_ips", &message.load_balancer_ips)?,
        internal_policy: policy(message.internal_local),
        external_policy: policy(message.external_local),
        affinity: message.affinity_seconds.map(|seconds| Duration::from_secs(seconds.into())),
        source_ranges: prefixes("source_ranges", &message.source_ranges)?,
        ports,
        endpoints,
    })
}

pub(crate) fn node(message: &proto::Node) -> Result<NodeFacts, WireError> {
    if message.name.is_empty() {
        return Err(WireError::NoName);
    }
    Ok(NodeFacts {
        name: message.name.as_str().into(),
        zone: optional(&message.zone),
        addresses: addresses("addresses", &message.addresses)?,
        pods: addresses("pods", &message.pods)?,
    })
}

pub(crate) fn cluster(message: &proto::Cluster) -> Result<ClusterFacts, WireError> {
    Ok(ClusterFacts { service_cidrs: prefixes("service_cidrs", &message.service_cidrs)? })
}

fn port(message: &proto::ServicePort) -> Result<ServicePort, WireError> {
    let protocol = match proto::Protocol::try_from(message.protocol) {
        Ok(proto::Protocol::Tcp) => Protocol::Tcp,
        Ok(proto::Protocol::Udp) => Protocol::Udp,
        Ok(proto::Protocol::Unspecified) | Err(_) => {
            return Err(WireError::Unknown { field: "ports.protocol", value: message.protocol });
        }
    };
    let app = match proto::AppProtocol::try_from(message.app_protocol) {
        Ok(proto::AppProtocol::Opaque) => AppProtocol::Opaque,
        Ok(proto::AppProtocol::Http) => AppProtocol::Http,
        Err(_) => return Err(WireError::Unknown { field: "ports.app_protocol", value: message.app_protocol }),
    };
    let port = number("ports.port", message.port)?;
    if port == 0 {
        return Err(WireError::Port { field: "ports.port", value: 0 });
    }
    let node_port = Some(number("ports.node_port", message.node_port)?).filter(|&port| port != 0);
    Ok(ServicePort { name: message.name.as_str().into(), protocol, port, node_port, app })
}

fn endpoint(message: &proto::Endpoint, service_ports: usize) -> Result<Endpoint, WireError> {
    if message.ports.len() > service_ports {
        return Err(WireError::EndpointPorts { endpoint: message.ports.len(), service: service_ports });
    }
    Ok(Endpoint {
        address: address("endpoints.address", &message.address)?,
        ports: message.ports.iter().map(|&port| number("endpoints.ports", port)).collect::<Result<_, _>>()?,
        ready: message.ready,
        serving: message.serving,
        terminating: message.terminating,
        node: optional(&message.node),
        zone: optional(&message.zone),
    })
}

fn policy(local: bool) -> Policy {
    if local { Policy::Local } else { Policy::Cluster }
}

fn optional(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn number(field: &'static str, value: u32) -> Result<u16, WireError> {
    u16::try_from(value).map_err(|_| WireError::Port { field, value })
}

fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| WireError::Address { field, length: bytes.len() })?;
    Ok(IpAddr::from(v6))
}

fn addresses(field: &'static str, all: &[Bytes]) -> Result<Vec<IpAddr>, WireError> {
    all.iter().map(|bytes| address(field, bytes)).collect()
}

fn prefixes(field: &'static str, all: &[proto::Prefix]) -> Result<Vec<IpNet>, WireError> {
    let prefix = |message: &proto::Prefix| {
        let address = address(field, &message.address)?;
        let too_long = WireError::Prefix { field, length: message.length };
        let length = u8::try_from(message.length).map_err(|_| too_long.clone())?;
        IpNet::new(address, length).map_err(|_| too_long)
    };
    all.iter().map(prefix).collect()
}
