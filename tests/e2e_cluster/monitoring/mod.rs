//! Prometheus as people run it: it finds the pods, rules and dashboard have something to show, alerts fire when they should.

mod prometheus;
mod traffic;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sheave_harness::wait::{holds_for, until};

use crate::audit;
use crate::context::{Case, Context, sheave};
use crate::shell::ready;
use prometheus::{NAMESPACE, Prometheus, Rules};
use traffic::Traffic;

pub(crate) const CASES: &[Case] = &[
    sheave("prometheus_finds_every_pod_of_sheave_by_its_annotations_and_nothing_else", targets),
    sheave("every_recording_rule_and_every_panel_of_the_dashboard_has_data", data).long(),
    sheave("no_alert_fires_on_a_healthy_cluster_and_those_that_are_caused_do", alerts).long(),
];

const SYSTEM: &str = "sheave-system";
/// Targets are found at once, and asked within 15 s; rules are looked at every 15 s.
const SCRAPED: Duration = Duration::from_secs(60);
/// A rate needs two scrapes after what it counts, a recording rule one more look, an alert 20 s.
const COUNTED: Duration = Duration::from_secs(150);
/// Four looks at the rules.
const HEALTHY: Duration = Duration::from_secs(60);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What Prometheus is to find, from the API server: job, node and address of each running pod of ours.
fn wanted(it: &Context<'_>) -> Result<BTreeSet<[String; 3]>> {
    let mut all = BTreeSet::new();
    for pod in it.fixture.api.list("Pod", SYSTEM)? {
        let (meta, annotations) = (&pod["metadata"], &pod["metadata"]["annotations"]);
        if meta["labels"]["app.kubernetes.io/part-of"] == "sheave" {
            let at = format!("http://{}:{}", text(&pod["status"]["podIP"]), text(&annotations["prometheus.io/port"]));
            let job = text(&meta["labels"]["app.kubernetes.io/name"]);
            all.insert([
                job,
                text(&pod["spec"]["nodeName"]),
                format!("{at}{}", text(&annotations["prometheus.io/path"])),
            ]);
        }
    }
    ensure!(all.len() == it.nodes().len() + 2, "a proxy for each node and two controllers: {all:?}");
    Ok(all)
}

/// Waits until all that Prometheus asks is up and is what should be.
fn all_up(it: &Context<'_>, prometheus: &Prometheus<'_>) -> Result<()> {
    until("every pod is a target and up", SCRAPED, || {
        std::thread::sleep(Duration::from_secs(1));
        let data = prometheus.get("/api/v1/targets", &[("state", "active")])?;
        let mut found = BTreeSet::new();
        for target in data["activeTargets"].as_array().context("targets")? {
            ensure!(
                target["health"] == "up",
                "{} is {}: {}",
                target["scrapeUrl"],
                target["health"],
                target["lastError"]
            );
            let labels = &target["labels"];
            ensure!(
                labels["namespace"].is_null() && labels["service"].is_null(),
                "a target hides labels of ours: {labels}"
            );
            found.insert([text(&labels["job"]), text(&labels["node"]), text(&target["scrapeUrl"])]);
        }
        let wanted = wanted(it)?;
        ensure!(found == wanted, "found {found:?}, not {wanted:?}");
        Ok(())
    })
}

/// A pod with one of our ports that is none of ours: by its namespace, or for lack of annotations.
fn decoy(it: &Context<'_>, namespace: &str, annotations: &Value) -> Result<()> {
    it.fixture.api.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "decoy", "namespace": namespace, "annotations": annotations,
            "labels": {"app": "decoy"}},
        "spec": {"containers": [{"name": "main", "image": "localhost/pause:1", "imagePullPolicy": "Never",
            "ports": [{"name": "admin", "containerPort": 15020}]}]},
    }))?;
    until("the decoy runs", SCRAPED, || {
        let pod = it.fixture.api.read("Pod", namespace, "decoy")?;
        ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]["phase"]);
        Ok(())
    })
}

fn targets(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    let scraped =
        json!({"prometheus.io/scrape": "true", "prometheus.io/port": "15020", "prometheus.io/path": "/metrics"});
    decoy(it, &it.namespace, &scraped)?;
    let result = decoy(it, SYSTEM, &json!({})).and_then(|()| only_ours(it));
    it.fixture.api.delete("Pod", SYSTEM, "decoy", 0)?;
    result
}

fn only_ours(it: &Context<'_>) -> Result<()> {
    let prometheus = Prometheus::start(it, Rules::Shipped)?;
    all_up(it, &prometheus)?;
    for (job, count) in [("sheave-proxy", it.nodes().len()), ("sheave-controller", 2)] {
        let up = prometheus.query(&format!("up{{job=\"{job}\"}} == 1"))?;
        ensure!(up.len() == count, "{job}: {up:?}");
    }
    let mapped = prometheus.query("count by (job, node) (sheave_nacks_total)")?;
    ensure!(mapped.len() == it.nodes().len() + 2, "not every program's series have a job and a node: {mapped:?}");
    // The rights that the page gives are enough. Whether it lists or watches from the start depends on its version and the
    // API server's, so both are granted and one may be unused.
    let calls = audit::log::calls(&it.fixture.state, &format!("system:serviceaccount:{NAMESPACE}:"))?;
    ensure!(calls.iter().any(|call| call.resource == "pods"), "the API server has seen nothing of Prometheus");
    audit::all_allowed(&calls)?;
    prometheus.end()
}

/// Whether any series has a value that is a number.
fn shows(series: &[Value]) -> bool {
    let number = |pair: &Value| pair[1].as_str().is_some_and(|it| it != "NaN");
    series.iter().any(|it| number(&it["value"]) || it["values"].as_array().is_some_and(|all| all.iter().any(number)))
}

/// A query of the dashboard: its panel, itself, and whether it is about this moment only.
struct Panel {
    title: String,
    expression: String,
    instant: bool,
}

fn file(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/monitoring").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
}

/// Every query of the dashboard as Grafana would send it: for all nodes, and for some that somebody chose.
fn panels(it: &Context<'_>) -> Result<Vec<Panel>> {
    let dashboard: Value = serde_json::from_str(&file("dashboard.json")?)?;
    let chosen = it.nodes().iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join("|");
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            for nodes in [".*", &format!("({chosen})")] {
                let expression = text(&target["expr"]).replace("$node", nodes);
                ensure!(!expression.contains('$') && !expression.is_empty(), "a variable nobody knows: {expression}");
                all.push(Panel { title: text(&panel["title"]), expression, instant: target["instant"] == true });
            }
        }
    }
    ensure!(all.len() > 40, "{} queries", all.len());
    Ok(all)
}

/// Names that rules record their results under.
fn recorded() -> Result<Vec<String>> {
    let names: Vec<String> = file("rules.yml")?
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: ").map(str::to_owned))
        .collect();
    ensure!(names.len() >= 5, "{names:?}");
    Ok(names)
}

fn data(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    let prometheus = Prometheus::start(it, Rules::Shipped)?;
    all_up(it, &prometheus)?;
    let mut traffic = Traffic::good(it)?;
    traffic.bad()?;
    traffic.rejected()?;
    let (panels, recorded) = (panels(it)?, recorded()?);
    until("every recording rule and every panel has data", COUNTED, || {
        traffic.change()?;
        std::thread::sleep(Duration::from_secs(3));
        let mut empty = Vec::new();
        for name in &recorded {
            if !shows(&prometheus.query(name)?) {
                empty.push(name.clone());
            }
        }
        for panel in &panels {
            // What stands in for nothing would hide that there is nothing.
            let expression = panel.expression.replace(" or vector(0)", "");
            let found = if panel.instant { prometheus.query(&expression)? } else { prometheus.graph(&expression)? };
            if !shows(&found) {
                empty.push(format!("{}: {expression}", panel.title));
            }
        }
        ensure!(empty.is_empty(), "nothing is shown by:\n    {}", empty.join("\n    "));
        Ok(())
    })?;
    // The dashboard's own choice of nodes.
    let nodes = prometheus.get("/api/v1/label/node/values", &[("match[]", "sheave_snapshot_age_seconds")])?;
    let names: Vec<&str> = it.nodes().iter().map(|node| node.name.as_str()).collect();
    ensure!(nodes == json!(names), "the dashboard offers {nodes}");
    drop(traffic);
    prometheus.end()
}

/// Alerts that have fired since Prometheus was started, with the Service that they are about.
fn fired(prometheus: &Prometheus<'_>) -> Result<BTreeSet<[String; 3]>> {
    let series = "count by (alertname, namespace, service) (count_over_time(ALERTS{alertstate=\"firing\"}[1h]))";
    let labels = |it: &Value| ["alertname", "namespace", "service"].map(|label| text(&it["metric"][label]));
    Ok(prometheus.query(series)?.iter().map(labels).collect())
}

/// Whether an alert fires now, for series with these labels.
fn fires(prometheus: &Prometheus<'_>, alert: &str, labels: &str) -> Result<bool> {
    Ok(!prometheus.query(&format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"{labels}}}"))?.is_empty())
}

fn wait_for(prometheus: &Prometheus<'_>, alert: &str, labels: &str, firing: bool) -> Result<()> {
    until(&format!("{alert}{labels} fires: {firing}"), COUNTED, || {
        std::thread::sleep(Duration::from_secs(1));
        ensure!(fires(prometheus, alert, labels)? == firing, "it is the other way round");
        Ok(())
    })
}

fn only(prometheus: &Prometheus<'_>, expected: &[&str]) -> Result<()> {
    let fired = fired(prometheus)?;
    let right = |[alert, _, service]: &[String; 3]| {
        expected.contains(&alert.as_str()) && (alert != "SheaveServiceFails" || service == "refusing")
    };
    let errors = || prometheus.query("sheave:service_errors:rate5m");
    ensure!(fired.iter().all(right), "{fired:?} fired, only {expected:?} should; errors are {:?}", errors()?);
    Ok(())
}

/// Every rule can be computed, and every series that an alert counts an increase of is there before the first.
fn rules_work(prometheus: &Prometheus<'_>) -> Result<()> {
    let data = prometheus.get("/api/v1/rules", &[])?;
    let groups = data["groups"].as_array().context("groups")?;
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
    ensure!(rules.len() > 20, "{} rules", rules.len());
    for rule in rules {
        ensure!(rule["health"] == "ok", "{}: {} {}", rule["name"], rule["health"], rule["lastError"]);
        let query = text(&rule["query"]);
        for counted in query.split("increase(").skip(1).filter_map(|rest| rest.split('[').next()) {
            ensure!(!prometheus.query(counted)?.is_empty(), "{}: no {counted} before the first", rule["name"]);
        }
    }
    Ok(())
}

fn alerts(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    let prometheus = Prometheus::start(it, Rules::Hasty)?;
    let mut traffic = Traffic::good(it)?;
    all_up(it, &prometheus)?;
    holds_for("no alert fires while all is well", HEALTHY, || {
        traffic.change()?;
        std::thread::sleep(Duration::from_secs(5));
        only(&prometheus, &[])
    })?;
    rules_work(&prometheus)?;

    traffic.bad()?;
    traffic.rejected()?;
    let failing = format!(", namespace=\"{}\", service=\"refusing\"", it.namespace);
    wait_for(&prometheus, "SheaveServiceFails", &failing, true)?;
    wait_for(&prometheus, "SheaveObjectsRejected", ", kind=\"Service\"", true)?;
    only(&prometheus, &["SheaveServiceFails", "SheaveObjectsRejected"])?;

    let scale = |replicas: u32| {
        let change = json!({"spec": {"replicas": replicas}});
        it.fixture.api.patch("Deployment", SYSTEM, "sheave-controller", "", &change)
    };
    scale(0)?;
    let away = ["SheaveNoController", "SheaveDisconnected"];
    let noticed = away.into_iter().try_for_each(|alert| wait_for(&prometheus, alert, "", true));
    scale(2)?;
    ready(it)?;
    noticed?;
    away.into_iter().try_for_each(|alert| wait_for(&prometheus, alert, "", false))?;
    // A new leader is found within seconds, but which seconds is the scrapes' luck.
    only(
        &prometheus,
        &["SheaveServiceFails", "SheaveObjectsRejected", "SheaveNoController", "SheaveDisconnected", "SheaveNoLeader"],
    )?;
    drop(traffic);
    prometheus.end()
}
