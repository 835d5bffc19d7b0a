//! kube-proxy's metrics: the list of docs/metrics.md, and what moves them.

use std::collections::BTreeMap;

use prometheus::proto::MetricType;
use sheave_model::{ServiceKey, Store};

use super::*;
use crate::metrics::Metrics;
use crate::store::tests::{delta, service};

/// Names on the page with what it says of type and labels.
fn on_page() -> BTreeMap<String, String> {
    let page = include_str!("../../../docs/metrics.md");
    let shown = page.lines().filter(|line| line.starts_with("| `kubeproxy_")).map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let name = columns.nth(1).unwrap().trim_matches('`').to_owned();
        (name, columns.next().unwrap().to_owned())
    });
    shown.collect()
}

/// What is shown, in the words of the page.
fn shown(registry: &Registry) -> BTreeMap<String, String> {
    let families = registry.gather().into_iter().filter(|it| it.name().starts_with("kubeproxy_"));
    let described = families.map(|family| {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            other => panic!("{other:?}"),
        };
        let labels = family.get_metric()[0].get_label().iter().map(|label| format!(", `{}`", label.name()));
        (family.name().to_owned(), format!("{kind}{}", labels.collect::<String>()))
    });
    described.collect()
}

#[test]
fn the_page_lists_them_and_they_are_shown_only_when_asked_for() {
    let asked = Metrics::with(true).unwrap();
    asked.compat.as_ref().unwrap().refresh(&Snapshot::default(), "n1");
    assert_eq!(shown(asked.registry()), on_page());
    assert_eq!(on_page().len(), 11);
    let not_asked = Metrics::with(false).unwrap();
    assert!(not_asked.compat.is_none());
    assert_eq!(shown(not_asked.registry()), BTreeMap::new());
}

#[test]
fn buckets_are_those_of_kube_proxy() {
    let buckets = programming_buckets().unwrap();
    assert_eq!(buckets.len(), 80);
    assert_eq!(
        (buckets[..3].to_vec(), buckets[60], buckets[61], buckets[73]),
        (vec![0.25, 0.5, 1.0], 59.0, 60.0, 120.0)
    );
    assert_eq!(buckets.last(), Some(&300.0));
    let registry = Registry::new();
    Compat::new(&registry).unwrap().took(Duration::from_millis(300));
    let families = registry.gather();
    let bounds = |name: &str| -> Vec<(f64, u64)> {
        let family = families.iter().find(|it| it.name() == name).unwrap();
        family.get_metric()[0]
            .get_histogram()
            .get_bucket()
            .iter()
            .map(|b| (b.upper_bound(), b.cumulative_count()))
            .collect()
    };
    let sync = bounds("kubeproxy_sync_proxy_rules_duration_seconds");
    assert_eq!((sync.len(), sync[0], sync[14]), (15, (0.001, 0), (16.384, 0)));
    assert_eq!(bounds("kubeproxy_network_programming_duration_seconds")[..2], [(0.25, 0), (0.5, 1)]);
}

/// Totals and what waits, endpoints first.
fn counts(compat: &Compat) -> [i64; 4] {
    let total = |it: &Changes| it.total.get() as i64;
    let (e, s) = (&compat.endpoints, &compat.services);
    [total(e), total(s), e.pending.get(), s.pending.get()]
}

fn apply(compat: &Compat, store: &mut Store, delta: Delta) {
    let found = compat.compare(store.snapshot(), &delta);
    let revision = store.apply(delta).revision;
    compat.changed(found, revision);
}

#[test]
fn services_and_their_endpoints_are_counted_apart_and_wait_for_their_revision() {
    let (compat, mut store) = (Compat::new(&Registry::new()).unwrap(), Store::default());
    let (one, two) = (service("one", "10.0.0.1"), service("two", "10.0.0.2"));
    apply(&compat, &mut store, delta(vec![one.clone(), two]));
    assert_eq!(counts(&compat), [2, 2, 2, 2]);
    apply(&compat, &mut store, delta(vec![one.clone()]));
    assert_eq!(counts(&compat), [2, 2, 2, 2], "nothing has changed");
    let mut moved = one.clone();
    moved.endpoints[0].address = "10.1.0.10".parse().unwrap();
    apply(&compat, &mut store, delta(vec![moved.clone()]));
    moved.ports[0].port = 81;
    apply(&compat, &mut store, delta(vec![moved]));
    assert_eq!(counts(&compat), [3, 3, 3, 3]);
    compat.programmed(2);
    assert_eq!(counts(&compat), [3, 3, 1, 1]);
    let removals =
        vec![ResourceKey::Service(ServiceKey::new("ns", "one")), ResourceKey::Service(ServiceKey::new("ns", "none"))];
    apply(&compat, &mut store, Delta { removals, ..Delta::default() });
    assert_eq!(counts(&compat), [4, 4, 2, 2]);
    compat.programmed(store.snapshot().revision);
    assert_eq!(counts(&compat), [4, 4, 0, 0]);
}

#[test]
fn what_waits_is_bounded_and_nothing_of_it_is_lost() {
    let (compat, many) = (Compat::new(&Registry::new()).unwrap(), WAITING_LIMIT as u64 + 9);
    let one = Pending(Waiting { revision: 0, endpoints: 1, services: 2 });
    (1..=many).for_each(|revision| compat.changed(one, revision));
    assert_eq!(compat.waiting.lock().unwrap().len(), WAITING_LIMIT);
    compat.programmed(many - 1);
    assert_eq!(counts(&compat)[2..], [10, 20], "the newest are taken together");
    compat.programmed(many);
    assert_eq!(counts(&compat)[2..], [0, 0]);
}

#[test]
fn ports_with_policy_local_count_where_all_endpoints_are_elsewhere() {
    let (compat, mut store) = (Compat::new(&Registry::new()).unwrap(), Store::default());
    let mut local = service("local", "10.0.0.1");
    local.external_policy = Policy::Local;
    let empty = Service { endpoints: Vec::new(), ..Service { key: ServiceKey::new("ns", "empty"), ..local.clone() } };
    store.apply(delta(vec![local, empty, service("cluster", "10.0.0.2")]));
    let seen = |node: &str| {
        compat.refresh(store.snapshot(), node);
        let labels = [["internal", "IPv4"], ["external", "IPv4"], ["internal", "IPv6"], ["external", "IPv6"]];
        labels.map(|labels| compat.no_local.with_label_values(&labels).get())
    };
    assert_eq!(seen("n1"), [0; 4]);
    assert_eq!(seen("n2"), [0, 1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_round_is_from_a_snapshot_to_the_data_paths_having_it() {
    let (compat, mut store) = (Arc::new(Compat::new(&Registry::new()).unwrap()), Store::default());
    let (snapshots, applied) = (watch::Sender::new(Arc::new(store.snapshot().clone())), watch::Sender::new(0));
    let task = tokio::spawn(compat.clone().follow(snapshots.subscribe(), applied.subscribe()));
    tokio::task::yield_now().await;
    for round in 1..=2 {
        snapshots.send_replace(Arc::new(store.apply(delta(vec![service("one", "10.0.0.1")])).clone()));
        tokio::time::sleep(Duration::from_millis(200)).await;
        applied.send_replace(store.snapshot().revision);
        tokio::time::sleep(Duration::from_millis(1)).await;
        for family in &compat.sync {
            assert_eq!(family.get_sample_count(), round);
            assert!((family.get_sample_sum() - 0.2 * round as f64).abs() < 0.01, "{}", family.get_sample_sum());
        }
    }
    let [queued, synced] = [&compat.queued, &compat.synced].map(|it| it.with_label_values(&["IPv6"]).get());
    assert!(queued > 1.7e9 && synced >= queued, "{queued} {synced}");
    drop(snapshots);
    task.await.unwrap();
}

#[test]
fn answers_of_the_health_port_are_counted_by_page_and_code() {
    let compat = Compat::new(&Registry::new()).unwrap();
    compat.answered(Page::Healthz, 503);
    compat.answered(Page::Livez, 200);
    let of = |vec: &IntCounterVec| ["200", "503"].map(|code| vec.with_label_values(&[code]).get());
    assert_eq!((of(&compat.healthz), of(&compat.livez)), ([0, 1], [1, 0]));
}
