//! What is encoded comes back the same; what was damaged on the way is refused, and only that.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use sheave_api::{
    WireError, decode_update, decode_upsert, encode_resource, hash_to_bytes, key_from_name, known, known_to_pair,
    name_of_key, proto, view_from_proto, view_to_proto,
};
use sheave_model::{
    AppProtocol, ClusterFacts, Endpoint, NodeFacts, Policy, Protocol, Resource, ResourceKey, Service, ServiceKey,
    ServicePort, View,
};

fn upsert_of(resource: &Resource) -> proto::Upsert {
    let encoded = encode_resource(resource);
    proto::Upsert {
        name: Some(name_of_key(&resource.key())),
        hash: hash_to_bytes(encoded.hash),
        resource: encoded.bytes,
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), 0_u8..=32).prop_map(|(address, length)| IpNet::new(address, length).expect("32 fits both families"))
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Cluster), Just(Policy::Local)]
}

fn port() -> impl Strategy<Value = ServicePort> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let app = prop_oneof![Just(AppProtocol::Opaque), Just(AppProtocol::Http)];
    ("[a-z]{0,5}", protocol, 1_u16.., option::of(1_u16..), app).prop_map(|(name, protocol, port, node_port, app)| {
        ServicePort { name: name.into(), protocol, port, node_port, app }
    })
}

fn endpoint(ports: usize) -> impl Strategy<Value = Endpoint> {
    let name = || option::of("[a-z]{1,5}");
    (address(), vec(any::<u16>(), ports), any::<[bool; 3]>(), name(), name()).prop_map(
        |(address, ports, [ready, serving, terminating], node, zone)| Endpoint {
            address,
            ports,
            ready,
            serving,
            terminating,
            node: node.map(Into::into),
            zone: zone.map(Into::into),
        },
    )
}

prop_compose! {
    fn service()(
        (namespace, name, created, affinity) in ("[a-z]{1,5}", "[a-z]{1,5}", any::<i64>(), option::of(any::<u32>())),
        (cluster_ips, external_ips, load_balancer_ips) in (vec(address(), 0..3), vec(address(), 0..3), vec(address(), 0..3)),
        (internal_policy, external_policy, source_ranges) in (policy(), policy(), vec(net(), 0..3)),
        (ports, endpoints) in vec(port(), 0..4).prop_flat_map(|ports| {
            let count = ports.len();
            (Just(ports), vec(endpoint(count), 0..5))
        }),
    ) -> Resource {
        Resource::Service(Service {
            key: ServiceKey::new(namespace, name),
            created,
            cluster_ips,
            external_ips,
            load_balancer_ips,
            internal_policy,
            external_policy,
            affinity: affinity.map(|seconds| Duration::from_secs(seconds.into())),
            source_ranges,
            ports,
            endpoints,
        })
    }
}

fn node() -> impl Strategy<Value = Resource> {
    ("[a-z]{1,5}", option::of("[a-z]{1,5}"), vec(address(), 0..3), vec(address(), 0..9)).prop_map(
        |(name, zone, addresses, pods)| {
            Resource::Node(NodeFacts { name: name.into(), zone: zone.map(Into::into), addresses, pods })
        },
    )
}

fn resource() -> impl Strategy<Value = Resource> {
    let cluster = vec(net(), 0..3).prop_map(|service_cidrs| Resource::Cluster(ClusterFacts { service_cidrs }));
    prop_oneof![8 => service(), 2 => node(), 1 => cluster]
}

proptest! {
    #[test]
    fn a_resource_comes_back_as_it_was(resource in resource()) {
        let back = decode_upsert(upsert_of(&resource)).expect("what was encoded is accepted");
        prop_assert_eq!(back.hash, encode_resource(&resource).hash);
        prop_assert_eq!(back.resource, resource);
    }

    #[test]
    fn a_name_and_a_hash_come_back_as_they_were(resource in resource()) {
        let hash = encode_resource(&resource).hash;
        let back = known_to_pair(&known(&resource.key(), hash)).expect("what was encoded is accepted");
        prop_assert_eq!(back, (resource.key(), hash));
    }

    #[test]
    fn one_flipped_bit_refuses_that_resource_and_no_other(all in vec(resource(), 2..5), at: prop::sample::Index, bit in 0_u8..8) {
        let mut upserts: Vec<_> = all.iter().map(upsert_of).collect();
        let damaged = at.index(all.len());
        let mut bytes = upserts[damaged].resource.to_vec();
        prop_assume!(!bytes.is_empty());
        let position = at.index(bytes.len());
        bytes[position] ^= 1 << bit;
        upserts[damaged].resource = Bytes::from(bytes);
        let decoded = decode_update(proto::Update { upserts, ..Default::default() });
        prop_assert_eq!(decoded.delta.upserts.len(), all.len() - 1);
        prop_assert_eq!(decoded.refused.len(), 1);
        prop_assert_eq!(decoded.refused[0].key.clone(), Some(all[damaged].key()));
        prop_assert_eq!(&decoded.refused[0].error, &WireError::OtherHash);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..200)) {
        let hash = hash_to_bytes(sheave_api::content_hash(&bytes));
        for key in [ResourceKey::Service(ServiceKey::new("a", "b")), ResourceKey::Node("n".into()), ResourceKey::Cluster] {
            let name = Some(name_of_key(&key));
            let upsert = proto::Upsert { name, hash: hash.clone(), resource: Bytes::from(bytes.clone()) };
            if let Ok(upsert) = decode_upsert(upsert) {
                prop_assert_eq!(upsert.resource.key(), key);
            }
        }
    }

    #[test]
    fn a_view_comes_back_as_it_was(source in ".{0,5}", versions in prop::collection::btree_map("[A-Z]{1,5}", any::<u64>(), 0..4), age: u64) {
        let view = View { source, versions };
        let back = view_from_proto(view_to_proto(&view, Duration::from_millis(age)));
        prop_assert_eq!(back, (view, Duration::from_millis(age)));
    }
}

/// Encodes a Service message as it is, with the right hash, and returns why it was refused.
fn refusal_of(message: &proto::Service) -> WireError {
    let bytes = Bytes::from(message.encode_to_vec());
    let name = Some(name_of_key(&ResourceKey::Service(ServiceKey::new("ns", "web"))));
    let hash = hash_to_bytes(sheave_api::content_hash(&bytes));
    decode_upsert(proto::Upsert { name, hash, resource: bytes }).expect_err("it is refused").error
}

#[test]
fn what_cannot_be_right_is_refused_by_field() {
    let named =
        |namespace: &str, name: &str| Some(proto::ServiceName { namespace: namespace.into(), name: name.into() });
    let good = proto::Service { name: named("ns", "web"), ..Default::default() };
    let port = |port, node_port, protocol| proto::ServicePort { port, node_port, protocol, ..Default::default() };
    let with_port = |port| proto::Service { ports: vec![port], ..good.clone() };

    let other = refusal_of(&proto::Service { name: named("ns", "db"), ..good.clone() });
    assert_eq!(other, WireError::OtherName { outer: "service ns/web".into(), inner: "service ns/db".into() });
    assert_eq!(refusal_of(&proto::Service::default()), WireError::NoName);
    assert_eq!(refusal_of(&with_port(port(0, 0, 1))), WireError::Port { field: "ports.port", value: 0 });
    assert_eq!(refusal_of(&with_port(port(70_000, 0, 1))), WireError::Port { field: "ports.port", value: 70_000 });
    assert_eq!(
        refusal_of(&with_port(port(80, 65_536, 1))),
        WireError::Port { field: "ports.node_port", value: 65_536 }
    );
    assert_eq!(refusal_of(&with_port(port(80, 0, 0))), WireError::Unknown { field: "ports.protocol", value: 0 });
    assert_eq!(refusal_of(&with_port(port(80, 0, 9))), WireError::Unknown { field: "ports.protocol", value: 9 });
    let short = proto::Service { cluster_ips: vec![Bytes::from_static(&[1, 2, 3])], ..good.clone() };
    assert_eq!(refusal_of(&short), WireError::Address { field: "cluster_ips", length: 3 });
    let range = proto::Prefix { address: Bytes::from_static(&[10, 0, 0, 0]), length: 33 };
    let long = proto::Service { source_ranges: vec![range], ..good.clone() };
    assert_eq!(refusal_of(&long), WireError::Prefix { field: "source_ranges", length: 33 });
    let endpoint =
        proto::Endpoint { address: Bytes::from_static(&[10, 0, 0, 1]), ports: vec![80], ..Default::default() };
    let extra = proto::Service { endpoints: vec![endpoint], ..good };
    assert_eq!(refusal_of(&extra), WireError::EndpointPorts { endpoint: 1, service: 0 });
}

#[test]
fn a_resource_or_removal_without_a_name_is_refused_alone() {
    let update = proto::Update {
        upserts: vec![proto::Upsert::default()],
        removals: vec![proto::ResourceName::default(), name_of_key(&ResourceKey::Cluster)],
        ..Default::default()
    };
    let decoded = decode_update(update);
    assert_eq!(decoded.delta.removals, [ResourceKey::Cluster]);
    assert_eq!(decoded.refused.len(), 2);
    assert!(decoded.refused.iter().all(|refusal| refusal.error == WireError::NoName));
    assert_eq!(key_from_name(&proto::ResourceName::default()), Err(WireError::NoName));
}
