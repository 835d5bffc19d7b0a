//! Replicas of one controller against an API server in memory: the objects they write, and a CA that follows another.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use sheave_api::encode_resource;
use sheave_model::{NodeFacts, Resource};
use tokio::sync::watch;

use super::fake::Store;
use super::keeper::{Keeper, Trust, keep};
use super::keys::{Keys, Previous};
use super::{Directory, Serving};
use crate::metrics::Metrics;
use crate::pki::Authority;
use crate::publish::{Publisher, Standing};
use crate::serve::Nodes;

/// One replica with one node, `n1`, in its catalog.
struct Replica {
    keeper: Keeper,
    leads: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    trust: Trust,
}

fn replica(store: &Store, address: &str, leads: bool) -> Replica {
    let metrics = Arc::new(Metrics::new());
    let publisher = Arc::new(Publisher::new(metrics.clone()));
    let facts = Resource::Node(NodeFacts { name: "n1".into(), ..NodeFacts::default() });
    let change = (facts.key(), Some(encode_resource(&facts)));
    publisher.publish(vec![change], 1, Standing { ready: true, ..Standing::new() });
    let (leads, stop) = (watch::Sender::new(leads), watch::Sender::new(false));
    let trust = Trust {
        client: store.client(),
        namespace: "sheave-system".to_owned(),
        advertise: address.parse().unwrap(),
        leads: leads.subscribe(),
        nodes: Arc::new(Nodes::new(metrics.clone())),
        publisher,
        metrics,
        serving: Arc::new(Serving::default()),
        directory: watch::Sender::new(Arc::new(Directory::default())),
        stopping: stop.subscribe(),
    };
    Replica { keeper: Keeper::new(trust.clone()), leads, stop, trust }
}

impl Replica {
    async fn looks(&mut self) {
        let errors = self.keeper.look().await;
        assert!(errors.is_empty(), "{errors:?}");
    }

    fn directory(&self) -> Directory {
        (**self.trust.directory.borrow()).clone()
    }
}

fn keys(store: &Store) -> Keys {
    let secret: Secret = serde_json::from_value(store.get("secrets/sheave-ca").unwrap()).unwrap();
    Keys::from_data(&secret.data.unwrap()).unwrap()
}

#[tokio::test]
async fn the_leader_alone_writes_and_every_replica_says_the_same() {
    let store = Store::default();
    let (mut leader, mut other) = (replica(&store, "10.0.0.1:15010", true), replica(&store, "10.0.0.2:15010", false));
    other.looks().await;
    assert_eq!((store.get("secrets/sheave-ca"), store.get("configmaps/sheave-discovery")), (None, None));
    leader.looks().await;
    leader.looks().await;
    other.looks().await;
    let data = store.get("configmaps/sheave-discovery").unwrap()["data"].clone();
    assert_eq!(data["controllers"], "10.0.0.1:15010\n10.0.0.2:15010\n");
    assert_eq!(data["ca.crt"], keys(&store).bundle());
    assert_eq!(leader.directory(), other.directory());
    assert_eq!(leader.directory().to_data()["ca.crt"], keys(&store).bundle());
    // What somebody else wrote there is put right.
    store.put(
        "configmaps/sheave-discovery",
        json!({"metadata": {"name": "sheave-discovery"}, "data": {"ca.crt": "wrong"}}),
    );
    leader.looks().await;
    assert_eq!(store.get("configmaps/sheave-discovery").unwrap()["data"], data);
}

#[tokio::test]
async fn a_replica_that_ends_is_off_the_list() {
    let store = Store::default();
    let mut leader = replica(&store, "10.0.0.1:15010", true);
    let other = replica(&store, "10.0.0.2:15010", false);
    let task = tokio::spawn(keep(other.trust.clone()));
    while store.names("leases").is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    other.stop.send_replace(true);
    task.await.unwrap().unwrap();
    leader.looks().await;
    leader.looks().await;
    assert_eq!(store.names("leases"), ["sheave-replica-10-0-0-1-15010"]);
    assert_eq!(leader.directory().to_data()["controllers"], "10.0.0.1:15010\n");
}

#[tokio::test]
async fn a_deleted_secret_means_a_new_ca_that_nodes_learn_of_first() {
    let store = Store::default();
    let (mut leader, mut other) = (replica(&store, "10.0.0.1:15010", true), replica(&store, "10.0.0.2:15010", false));
    leader.looks().await;
    other.looks().await;
    let old = keys(&store);
    store.remove("secrets/sheave-ca");
    leader.looks().await;
    other.looks().await;
    let new = keys(&store);
    assert!(matches!(&new.previous, Some(Previous::Signing(_))));
    assert_eq!(new.signer().certificate(), old.current.certificate());
    assert_eq!(leader.directory(), other.directory());
    leader.looks().await;
    assert_eq!(leader.trust.metrics.ca_unacknowledged.get(), 1, "n1 has not acknowledged");
    // The node is the other replica's, which tells the leader by its Lease.
    let (entered, _relay) = other.trust.nodes.enter("n1", "v", 0);
    entered.stream.trusts(other.directory().ca_hash());
    other.looks().await;
    leader.looks().await;
    assert_eq!(leader.trust.metrics.ca_unacknowledged.get(), 0);
}

#[tokio::test]
async fn nodes_that_need_no_proxy_hold_up_no_ca_and_a_leader_no_more_shows_none() {
    let store = Store::default();
    let mut leader = replica(&store, "10.0.0.1:15010", true);
    let proxied = |nodes: &[&str]| Arc::new(nodes.iter().map(|&node| node.into()).collect());
    leader.looks().await;
    store.remove("secrets/sheave-ca");
    leader.looks().await;
    let unacknowledged = async |leader: &mut Replica, nodes: &[&str]| {
        let standing = Standing { proxied: proxied(nodes), ..leader.trust.publisher.standing() };
        leader.trust.publisher.publish(Vec::new(), 1, standing);
        leader.looks().await;
        leader.trust.metrics.ca_unacknowledged.get()
    };
    assert_eq!(unacknowledged(&mut leader, &["n2"]).await, 0, "n1 has no proxy, as a Fargate node");
    assert_eq!(unacknowledged(&mut leader, &["n1"]).await, 1);
    leader.leads.send_replace(false);
    leader.looks().await;
    assert_eq!(leader.trust.metrics.ca_unacknowledged.get(), 0, "another one leads");
}

#[tokio::test]
async fn a_leader_that_was_another_before_knows_the_old_ca() {
    let store = Store::default();
    let (mut first, mut second) = (replica(&store, "10.0.0.1:15010", true), replica(&store, "10.0.0.2:15010", false));
    first.looks().await;
    second.looks().await;
    let old = keys(&store);
    let theirs = Keys::settled(Arc::new(Authority::make().unwrap()));
    let data: BTreeMap<String, ByteString> = theirs.to_data();
    store.put("secrets/sheave-ca", json!({"metadata": {"name": "sheave-ca"}, "data": data}));
    second.looks().await;
    assert_eq!(second.directory().to_data()["ca.crt"], old.bundle(), "it waits for the leader");
    second.leads.send_replace(true);
    second.looks().await;
    let found = keys(&store);
    assert_eq!(found.current.certificate(), theirs.current.certificate());
    assert_eq!(found.signer().certificate(), old.current.certificate());
}

#[tokio::test]
async fn a_secret_that_is_no_ca_stops_nothing() {
    let store = Store::default();
    let mut leader = replica(&store, "10.0.0.1:15010", true);
    leader.looks().await;
    let before = leader.directory();
    store.put("secrets/sheave-ca", json!({"metadata": {"name": "sheave-ca"}, "data": {"ca.crt": "bm8="}}));
    let errors = leader.keeper.look().await;
    assert!(errors.iter().any(|error| format!("{error:#}").contains("delete it")), "{errors:?}");
    assert_eq!(leader.directory(), before);
    assert_eq!(store.get("configmaps/sheave-discovery").unwrap()["data"]["ca.crt"], before.to_data()["ca.crt"]);
}
