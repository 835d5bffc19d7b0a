//! Ports of Services, and what containers and slices share with them: port numbers and protocols.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServicePort as Written;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sheave_model::{AppProtocol, Protocol, ServicePort};

use super::{Problems, Target};
use crate::Strings;

/// Whether a protocol is one that Services are forwarded for.
pub(super) enum Carried {
    Yes(Protocol),
    No,
}

/// Reads a protocol; TCP where none is written.
pub(super) fn protocol(text: Option<&str>) -> Carried {
    match text {
        None | Some("" | "TCP") => Carried::Yes(Protocol::Tcp),
        Some("UDP") => Carried::Yes(Protocol::Udp),
        Some(_) => Carried::No,
    }
}

/// A port number from 1 to 65535.
pub(super) fn number(value: i32) -> Option<u16> {
    u16::try_from(value).ok().filter(|&number| number != 0)
}

/// The ports of a Service that can be served, each with where it leads in a pod.
pub(super) fn read(
    written: &[Written],
    all_http: bool,
    problems: &mut Problems,
    strings: &mut Strings,
) -> (Vec<ServicePort>, Vec<Target>) {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(written.len());
    let mut targets = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let Some((mut port, target)) = read_one(index, entry, all_http, problems, strings) else { continue };
        if ports.iter().any(|other| (other.port, other.protocol) == (port.port, port.protocol)) {
            let message = format!("{}/{} is there twice", port.port, port.protocol);
            problems.add(format!("spec.ports[{index}].port"), message, "give each port its own number or protocol");
            continue;
        }
        if ports.iter().any(|other| other.name == port.name && other.protocol == port.protocol) {
            let message = format!("{:?} names two ports", port.name);
            problems.add(format!("spec.ports[{index}].name"), message, "give each port its own name");
            continue;
        }
        if let Some(taken) = port.node_port
            && ports.iter().any(|other| (other.node_port, other.protocol) == (Some(taken), port.protocol))
        {
            let message = format!("{taken}/{} is there twice", port.protocol);
            problems.add(format!("spec.ports[{index}].nodePort"), message, "give each port its own node port");
            port.node_port = None;
        }
        ports.push(port);
        targets.push(target);
    }
    (ports, targets)
}

fn read_one(
    index: usize,
    entry: &Written,
    all_http: bool,
    problems: &mut Problems,
    strings: &mut Strings,
) -> Option<(ServicePort, Target)> {
    const RANGE: &str = "write a number from 1 to 65535";
    let field = |name: &str| format!("spec.ports[{index}].{name}");
    let Carried::Yes(protocol) = protocol(entry.protocol.as_deref()) else {
        let text = entry.protocol.as_deref().unwrap_or_default();
        problems.add(field("protocol"), format!("{text:?} is not carried"), "write TCP or UDP");
        return None;
    };
    let Some(port) = number(entry.port) else {
        problems.add(field("port"), format!("{} is not a port", entry.port), RANGE);
        return None;
    };
    let target = match &entry.target_port {
        // An API server turns an absent targetPort, and 0, into the port itself.
        None | Some(IntOrString::Int(0)) => Target::Number(port),
        Some(IntOrString::Int(value)) => match number(*value) {
            Some(value) => Target::Number(value),
            None => {
                problems.add(field("targetPort"), format!("{value} is not a port"), RANGE);
                return None;
            }
        },
        Some(IntOrString::String(name)) if name.is_empty() => Target::Number(port),
        Some(IntOrString::String(name)) => Target::Name(strings.get(name)),
    };
    let node_port = match entry.node_port {
        None | Some(0) => None,
        Some(value) => {
            if number(value).is_none() {
                problems.add(field("nodePort"), format!("{value} is not a port"), RANGE);
            }
            number(value)
        }
    };
    let http = protocol == Protocol::Tcp && (all_http || entry.app_protocol.as_deref() == Some("http"));
    let name: Arc<str> = strings.get(entry.name.as_deref().unwrap_or_default());
    let app = if http { AppProtocol::Http } else { AppProtocol::Opaque };
    Some((ServicePort { name, protocol, port, node_port, app }, target))
}
