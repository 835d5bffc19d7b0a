//! Kubernetes objects as tests write them: plain JSON, with the status that a kubelet or a cloud would add.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Value, json};

use crate::address::Pair;
use crate::pod::Pod;
use crate::testpod::protocol::Kind;
use crate::world::Node;

/// A Node object, ready, with its zone and its addresses.
pub fn node(node: &Node) -> Value {
    let address = |ip: IpAddr| json!({"type": "InternalIP", "address": ip});
    let mut addresses: Vec<_> = node.address.both().into_iter().map(address).collect();
    addresses.push(json!({"type": "Hostname", "address": node.name}));
    let labels = json!({"kubernetes.io/hostname": node.name, "topology.kubernetes.io/zone": node.zone});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "status": {
            "addresses": addresses,
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

/// What a kubelet would say of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// `status.phase`.
    pub phase: &'static str,
    /// The Ready condition.
    pub ready: bool,
}

/// Running and ready.
pub const READY: Phase = Phase { phase: "Running", ready: true };
/// Running, and failing its readiness probe.
pub const UNREADY: Phase = Phase { phase: "Running", ready: false };

/// A Pod object with these labels; its servers are its container's ports, named after what they speak.
pub fn pod(namespace: &str, pod: &Pod, labels: &Value, phase: Phase) -> Value {
    let transport = |kind: Kind| if kind == Kind::Udp { "UDP" } else { "TCP" };
    let port =
        |(kind, port): &(Kind, u16)| json!({"name": kind.name(), "containerPort": port, "protocol": transport(*kind)});
    let ports: Vec<_> = pod.servers.iter().map(port).collect();
    bare_pod(namespace, &pod.name, &pod.node.name, labels, &ports, Some(pod.address), pod.on_host(), phase)
}

/// A Pod object by parts, behind which nothing needs to run.
#[expect(clippy::too_many_arguments, reason = "each is one field of the object")]
pub fn bare_pod(
    namespace: &str,
    name: &str,
    node: &str,
    labels: &Value,
    ports: &[Value],
    address: Option<Pair>,
    on_host: bool,
    phase: Phase,
) -> Value {
    let word = if phase.ready { "True" } else { "False" };
    let condition = |kind: &str| json!({"type": kind, "status": word});
    let mut status = json!({
        "phase": phase.phase,
        "conditions": [condition("Ready"), condition("ContainersReady"), {"type": "PodScheduled", "status": "True"}],
    });
    if let Some(address) = address {
        status["podIP"] = json!(address.v4);
        status["podIPs"] = json!([{"ip": address.v4}, {"ip": address.v6}]);
    }
    let mut container = json!({"name": "main", "image": "test/pod:1"});
    if !ports.is_empty() {
        container["ports"] = json!(ports);
    }
    let mut spec = json!({"nodeName": node, "containers": [container]});
    if on_host {
        spec["hostNetwork"] = json!(true);
        status["hostIP"] = status["podIP"].clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec, "status": status,
    })
}

/// A Service of both families with these ports; `selector` null: none.
pub fn service(namespace: &str, name: &str, vip: Pair, selector: &Value, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": vip.v4, "clusterIPs": [vip.v4, vip.v6],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "selector": selector, "ports": ports,
        },
    })
}

/// One port of a Service; `target` a number or a name.
pub fn port(name: &str, protocol: &str, port: u16, target: impl Into<Value>) -> Value {
    json!({"name": name, "protocol": protocol, "port": port, "targetPort": target.into()})
}

/// An EndpointSlice of one family for a Service: ready endpoints, and one port of this name.
pub fn endpoint_slice(
    namespace: &str,
    name: &str,
    service: &str,
    addresses: &[IpAddr],
    port: (&str, &str, u16),
) -> Value {
    let family = if addresses.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" };
    let endpoint = |address: &IpAddr| json!({"addresses": [address], "conditions": {"ready": true}});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": port.0, "protocol": port.1, "port": port.2}],
    })
}

/// The time `ahead` seconds from now, as Kubernetes writes it.
pub fn timestamp(ahead: u64) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)? + Duration::from_secs(ahead);
    let (days, seconds) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let (year, month, day) = civil(i64::try_from(days)?);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Ok(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

/// Days since 1970-01-01 as a date of the proleptic Gregorian calendar. Years are counted from March 1st, so that the leap
/// day comes last; an era is 400 of them.
fn civil(days: i64) -> (i64, i64, i64) {
    let from_era_start = days + 719_468;
    let era = from_era_start.div_euclid(146_097);
    let day_of_era = from_era_start.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(20_453), (2025, 12, 31));
    }
}
