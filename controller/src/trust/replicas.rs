//! How replicas know of each other: each keeps a Lease that says where it serves, as API servers do (KEP-1965).
//!
//! A Lease rather than the Deployment's Pods: it says that a process serves at an address, wherever that runs, and needs neither
//! labels nor ports of a manifest. It is named after the address, so that a replica that starts anew takes over its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use sheave_api::content_hash;

/// By this label the Leases of replicas are listed.
const LABEL: (&str, &str) = ("app.kubernetes.io/component", "sheave-controller-replica");

/// A replica that has not renewed its Lease for this long is gone.
const DURATION: Duration = Duration::from_secs(30);

/// A Lease whose time of renewal is older than this is gone at first sight, whatever two clocks may differ by.
const LONG_GONE: Duration = Duration::from_secs(600);

/// While a CA is replaced: which CAs, and which nodes trust them.
const ACKNOWLEDGED: &str = "sheave-controller/acknowledged";

/// Nodes that trust the CAs with this hash. Nodes are named by hashes, since 10,000 names would not fit an annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) ca_hash: String,
    pub(super) nodes: BTreeSet<String>,
}

impl Acknowledged {
    /// Of nodes by name.
    pub(super) fn new(ca_hash: u128, nodes: impl Iterator<Item = String>) -> Self {
        Self { ca_hash: format!("{ca_hash:032x}"), nodes: nodes.map(|node| short_hash(&node)).collect() }
    }

    fn parse(text: &str) -> Option<Self> {
        let (ca_hash, nodes) = text.split_once(' ')?;
        let nodes = nodes.split(',').filter(|node| !node.is_empty()).map(str::to_owned).collect();
        Some(Self { ca_hash: ca_hash.to_owned(), nodes })
    }

    fn to_text(&self) -> String {
        format!("{} {}", self.ca_hash, self.nodes.iter().map(String::as_str).collect::<Vec<_>>().join(","))
    }
}

/// What stands for a node in an annotation: 40 bits, of which 10,000 nodes share none by chance (1 in 20,000).
pub(super) fn short_hash(node: &str) -> String {
    format!("{:010x}", content_hash(node.as_bytes()).0 >> 88)
}

/// The name of the Lease of a replica at this address.
pub(super) fn lease_name(address: SocketAddr) -> String {
    let plain: String = address.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("sheave-replica-{}", plain.trim_matches('-'))
}

/// The label selector of all of them.
pub(super) fn selector() -> String {
    format!("{}={}", LABEL.0, LABEL.1)
}

/// A replica's Lease as it is to be written; `old` is what it replaces.
pub(super) fn lease(
    address: SocketAddr,
    old: Option<&Lease>,
    acknowledged: Option<&Acknowledged>,
    wall: Timestamp,
) -> Lease {
    let mut metadata = match old {
        Some(old) => old.metadata.clone(),
        None => ObjectMeta { name: Some(lease_name(address)), ..ObjectMeta::default() },
    };
    metadata.labels.get_or_insert_default().insert(LABEL.0.to_owned(), LABEL.1.to_owned());
    let annotations = metadata.annotations.get_or_insert_default();
    match acknowledged {
        Some(acknowledged) => annotations.insert(ACKNOWLEDGED.to_owned(), acknowledged.to_text()),
        None => annotations.remove(ACKNOWLEDGED),
    };
    let spec = LeaseSpec {
        holder_identity: Some(address.to_string()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(wall)),
        ..LeaseSpec::default()
    };
    Lease { metadata, spec: Some(spec) }
}

/// A replica that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) address: SocketAddr,
    pub(super) acknowledged: Option<Acknowledged>,
}

/// All replicas as their Leases tell.
#[derive(Debug, Default)]
pub(super) struct Roll {
    pub(super) living: Vec<Replica>,
    /// Names of Leases that nobody renews.
    pub(super) dead: Vec<String>,
}

/// Since when each Lease has had the version it has, by this replica's own clock.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<String, (String, Instant)>);

impl Seen {
    /// Calls the roll.
    pub(super) fn roll(&mut self, leases: &[Lease], now: Instant, wall: Timestamp) -> Roll {
        let mut before = std::mem::take(&mut self.0);
        let mut roll = Roll::default();
        for lease in leases {
            let name = lease.metadata.name.clone().unwrap_or_default();
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let seen = before.remove(&name).filter(|(seen, _)| *seen == version);
            let since = seen.map_or(now, |(_, since)| since);
            self.0.insert(name.clone(), (version, since));
            let spec = lease.spec.as_ref();
            let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map_or(0, |time| time.0.as_second());
            let long_gone = wall.as_second().saturating_sub(renewed) > LONG_GONE.as_secs() as i64;
            let silent = now.saturating_duration_since(since) > DURATION;
            let address = spec.and_then(|spec| spec.holder_identity.as_deref()).and_then(|text| text.parse().ok());
            match address {
                Some(address) if !silent && !long_gone => {
                    let annotations = lease.metadata.annotations.as_ref();
                    let text = annotations.and_then(|all| all.get(ACKNOWLEDGED));
                    let acknowledged = text.and_then(|text| Acknowledged::parse(text));
                    roll.living.push(Replica { address, acknowledged });
                }
                Some(_) | None => roll.dead.push(name),
            }
        }
        roll
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_lease_is_named_after_its_address() {
        assert_eq!(lease_name(address("10.0.0.1:15010")), "sheave-replica-10-0-0-1-15010");
        let v6 = lease_name(address("[fd00::1]:15010"));
        assert!(v6.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{v6}");
        assert!(!v6.ends_with('-') && v6 != lease_name(address("[fd00:1::]:15010")), "{v6}");
    }

    #[test]
    fn a_replica_that_does_not_renew_its_lease_is_gone() {
        let mut one = lease(address("10.0.0.1:15010"), None, None, at(1000));
        let two = lease(address("10.0.0.2:15010"), None, None, at(1000));
        let old = lease(address("10.0.0.3:15010"), None, None, at(100));
        let (start, mut seen) = (Instant::now(), Seen::default());
        let mut roll = |one: &Lease, seconds: u64| {
            let leases = [one.clone(), two.clone(), old.clone()];
            let roll = seen.roll(&leases, start + Duration::from_secs(seconds), at(1000));
            (roll.living.iter().map(|replica| replica.address.to_string()).collect::<Vec<_>>(), roll.dead)
        };
        let (living, dead) = roll(&one, 0);
        assert_eq!((living.len(), dead), (2, vec![lease_name(address("10.0.0.3:15010"))]));
        one.metadata.resource_version = Some("2".into());
        assert_eq!(roll(&one, 20).0.len(), 2);
        let (living, dead) = roll(&one, 31);
        assert_eq!((living, dead.len()), (vec!["10.0.0.1:15010".to_owned()], 2));
    }

    #[test]
    fn acknowledgements_travel_with_the_lease_while_there_are_any() {
        let acknowledged = Acknowledged::new(7, ["a".to_owned(), "b".to_owned()].into_iter());
        assert!(acknowledged.nodes.contains(&short_hash("b")));
        let with = lease(address("10.0.0.1:15010"), None, Some(&acknowledged), at(9));
        let roll =
            |lease: &Lease| Seen::default().roll(std::slice::from_ref(lease), Instant::now(), at(9)).living.remove(0);
        assert_eq!(roll(&with).acknowledged, Some(acknowledged));
        let without = lease(address("10.0.0.1:15010"), Some(&with), None, at(9));
        assert_eq!(roll(&without).acknowledged, None);
        let none = Acknowledged::new(7, std::iter::empty());
        assert_eq!(Acknowledged::parse(&none.to_text()), Some(none));
    }
}
