//! One Service, as an API server would admit it: families, ClusterIPs, NodePorts and age. What an absent field means
//! otherwise (TCP, targetPort = port, type ClusterIP, policies Cluster, no affinity) is read so from the facts.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use sheave_index::{Condition, ObjectKey, facts::parse_address};
use sheave_model::Protocol;

use super::allocate::{Good, Pool};
use super::desk::condition;
use super::state::Record;

/// A Service with everything an API server adds.
pub(super) struct Admitted {
    pub(super) service: Service,
    pub(super) record: Record,
    pub(super) conditions: Vec<Condition>,
}

/// What a record holds.
pub(super) fn goods(record: &Record) -> Vec<Good> {
    let ports = record.node_ports.iter().map(|(slot, &port)| {
        let protocol = if slot.starts_with("UDP/") { Protocol::Udp } else { Protocol::Tcp };
        Good::Port(protocol, port)
    });
    record.cluster_ips.iter().map(|&ip| Good::Address(ip)).chain(ports).collect()
}

/// What a Service names itself.
pub(super) fn named(service: &Service) -> Vec<Good> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ips = explicit_ips(spec).into_iter().filter_map(|text| parse_address(&text)).map(Good::Address);
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.node_port?).ok().filter(|&number| number != 0)?;
        Some(Good::Port(protocol(port)?, number))
    });
    ips.chain(ports).collect()
}

/// Completes a Service. What it names stays as it is; what it had before stays its own; the rest is assigned.
pub(super) fn admit(key: &ObjectKey, written: &Service, old: Option<&Record>, pool: &Pool, now: i64) -> Admitted {
    let mut service = written.clone();
    let stamp = service.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    let created = stamp.or(old.map(|old| old.created)).unwrap_or(now);
    service.metadata.creation_timestamp = Timestamp::from_second(created).ok().map(Time);
    let mut desk = Form {
        key,
        asker: format!("{}/{}", key.namespace, key.name),
        old: old.cloned().unwrap_or_default(),
        pool,
        record: Record { uid: service.metadata.uid.clone(), created, ..Record::default() },
        conditions: Vec::new(),
    };
    let spec = service.spec.get_or_insert_default();
    let kind = spec.type_.get_or_insert_with(|| "ClusterIP".to_owned()).clone();
    match kind.as_str() {
        "ExternalName" => {}
        "ClusterIP" | "NodePort" | "LoadBalancer" => {
            if explicit_ips(spec).first().map(String::as_str) != Some("None") {
                desk.addresses(spec);
            }
            desk.node_ports(spec, &kind);
        }
        other => {
            let message = format!("{other:?} is not known, ClusterIP is taken");
            desk.wrong("spec.type", message, "write ClusterIP, NodePort, LoadBalancer or ExternalName");
            spec.type_ = Some("ClusterIP".to_owned());
            desk.addresses(spec);
        }
    }
    Admitted { record: desk.record, conditions: desk.conditions, service }
}

fn explicit_ips(spec: &ServiceSpec) -> Vec<String> {
    match &spec.cluster_ips {
        Some(ips) if !ips.is_empty() => ips.clone(),
        _ => spec.cluster_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect(),
    }
}

fn protocol(port: &ServicePort) -> Option<Protocol> {
    match port.protocol.as_deref() {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

/// One Service on the desk.
struct Form<'a> {
    key: &'a ObjectKey,
    asker: String,
    old: Record,
    pool: &'a Pool,
    record: Record,
    conditions: Vec<Condition>,
}

impl Form<'_> {
    fn wrong(&mut self, field: &str, message: String, remedy: &str) {
        self.conditions.push(condition(self.key, field, message, remedy));
    }

    /// The families a Service gets, as (is it IPv4): those it names, those of the addresses it names, or the primary one,
    /// and the other where its policy wants two.
    fn families(&mut self, spec: &ServiceSpec) -> Vec<bool> {
        let mut families = Vec::new();
        for (index, text) in spec.ip_families.iter().flatten().enumerate() {
            match text.as_str() {
                "IPv4" | "IPv6" if families.contains(&(text == "IPv4")) => {}
                "IPv4" | "IPv6" => families.push(text == "IPv4"),
                other => {
                    let message = format!("{other:?} is not known");
                    self.wrong(&format!("spec.ipFamilies[{index}]"), message, "write IPv4 or IPv6");
                }
            }
        }
        for ip in explicit_ips(spec).iter().filter_map(|text| parse_address(text)) {
            if !families.contains(&ip.is_ipv4()) {
                families.push(ip.is_ipv4());
            }
        }
        if families.is_empty() {
            // What it had stays its primary family, as an API server never changes it.
            let had = self.old.cluster_ips.first().map(IpAddr::is_ipv4);
            families.extend(had.or_else(|| self.pool.families().next()));
        }
        let policy = spec.ip_family_policy.as_deref().unwrap_or_default();
        if matches!(policy, "PreferDualStack" | "RequireDualStack") {
            let other: Vec<bool> = self.pool.families().filter(|family| !families.contains(family)).collect();
            families.extend(other);
        }
        if policy == "RequireDualStack" && families.len() < 2 {
            let message = "RequireDualStack needs both families, and --service-cidr has one".to_owned();
            self.wrong(
                "spec.ipFamilyPolicy",
                message,
                "give --service-cidr a CIDR of each family, or write PreferDualStack",
            );
        }
        if !matches!(policy, "" | "SingleStack" | "PreferDualStack" | "RequireDualStack") {
            let message = format!("{policy:?} is not known, SingleStack is taken");
            self.wrong("spec.ipFamilyPolicy", message, "write SingleStack, PreferDualStack or RequireDualStack");
        }
        families
    }

    fn addresses(&mut self, spec: &mut ServiceSpec) {
        let families = self.families(spec);
        let explicit = explicit_ips(spec);
        // Text that is no address is left for the facts to complain about.
        let bad: Vec<String> = explicit.iter().filter(|text| parse_address(text).is_none()).cloned().collect();
        let mut texts = Vec::new();
        let mut kept = Vec::new();
        for (index, &v4) in families.iter().enumerate() {
            let same = |text: &&String| parse_address(text).is_some_and(|ip| ip.is_ipv4() == v4);
            if let Some(text) = explicit.iter().find(same) {
                kept.extend(parse_address(text));
                texts.push(text.clone());
            } else if index < bad.len() {
                continue;
            } else if let Some(ip) = self.address(v4) {
                kept.push(ip);
                texts.push(ip.to_string());
            }
        }
        self.record.cluster_ips = kept;
        texts.extend(bad);
        spec.cluster_ip = texts.first().cloned();
        spec.cluster_ips = Some(texts);
        spec.ip_families = Some(families.iter().map(|&v4| if v4 { "IPv4" } else { "IPv6" }.to_owned()).collect());
    }

    fn address(&mut self, v4: bool) -> Option<IpAddr> {
        if let Some(mine) = self.old.cluster_ips.iter().find(|ip| ip.is_ipv4() == v4) {
            return Some(*mine);
        }
        let found = self.pool.free_address(&self.asker, v4);
        if found.is_none() {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let (message, remedy) = if self.pool.has_family(v4) {
                (format!("no {family} address is free"), "give --service-cidr a larger CIDR, or delete Services")
            } else {
                (
                    format!("there is no {family} address to assign"),
                    "name one here, or give --service-cidr a CIDR of the family",
                )
            };
            self.wrong("spec.clusterIPs", message, remedy);
        }
        found
    }

    fn node_ports(&mut self, spec: &mut ServiceSpec, kind: &str) {
        let wanted = kind == "NodePort" || kind == "LoadBalancer";
        let assigned = kind == "NodePort" || spec.allocate_load_balancer_node_ports != Some(false);
        let mut taken: Vec<Good> = Vec::new();
        for (index, port) in spec.ports.iter_mut().flatten().enumerate() {
            let field = format!("spec.ports[{index}].nodePort");
            let Some(protocol) = protocol(port) else { continue };
            if !wanted {
                if port.node_port.take().is_some_and(|number| number != 0) {
                    let message = format!("a Service of type {kind} has no node ports");
                    self.wrong(&field, message, "take it out, or write type NodePort");
                }
                continue;
            }
            let slot = format!("{protocol}/{}", port.port);
            let number = match port.node_port.filter(|&number| number != 0) {
                Some(number) => match u16::try_from(number).ok().filter(|&number| self.pool.is_node_port(number)) {
                    Some(number) => Some(number),
                    None => {
                        let message = format!("{number} is outside of {}", self.pool.port_range());
                        self.wrong(&field, message, "choose one of the range, or give --node-port-range another");
                        port.node_port = None;
                        continue;
                    }
                },
                None if !assigned => None,
                None => {
                    let free = |number: &u16| !taken.contains(&Good::Port(protocol, *number));
                    let found = self.old.node_ports.get(&slot).copied().filter(free);
                    let asker = format!("{} {slot}", self.asker);
                    let found = found.or_else(|| self.pool.free_port(&asker, protocol, &taken));
                    if found.is_none() {
                        let message = format!("no {protocol} port of {} is free", self.pool.port_range());
                        self.wrong(&field, message, "give --node-port-range more, or delete Services");
                    }
                    found
                }
            };
            port.node_port = number.map(i32::from);
            if let Some(number) = number {
                taken.push(Good::Port(protocol, number));
                self.record.node_ports.insert(slot, number);
            }
        }
    }
}
