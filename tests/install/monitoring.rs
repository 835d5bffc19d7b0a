//! Alerts and rules by promtool, the dashboard by what Grafana reads of it, and both by the page of metrics: a name that no
//! program has would show nothing and never alert.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{root, succeed, text};

const FOLDER: &str = "manifests/monitoring";

/// Real Prometheus programs, built with the Kubernetes discovery that distributions leave out.
fn promtool(arguments: &[&str]) -> String {
    let folder = succeed(".ci/prometheus", &["--path"]);
    let output = Command::new(Path::new(folder.trim()).join("promtool"))
        .args(arguments)
        .current_dir(root().join(FOLDER))
        .output();
    let output = output.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

#[test]
fn promtool_accepts_rules_and_scrape_configuration() {
    let said = promtool(&["check", "config", "prometheus.yml"]);
    assert!(said.contains("SUCCESS: prometheus.yml is valid") && said.contains("rules found"), "{said}");
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"]);
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    promtool(&["test", "rules", "rules_test.yml"]);
}

/// Words of an expression that look like names of series.
fn names(expression: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words =
        expression.split(|c| !word(c)).filter(|word| word.starts_with("sheave_") || word.starts_with("sheave:"));
    words.map(str::to_owned).collect()
}

/// The metrics of the page, a histogram by its series.
fn metrics() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for line in text("docs/metrics.md").lines().filter(|line| line.starts_with("| `sheave_")) {
        let name = line.split('`').nth(1).unwrap().to_owned();
        if line.contains("| histogram") {
            all.extend(["_bucket", "_sum", "_count"].map(|series| format!("{name}{series}")));
        } else {
            all.insert(name);
        }
    }
    assert!(all.len() > 40, "{all:?}");
    all
}

fn rules() -> Vec<Value> {
    let file: Value = serde_yaml_ng::from_str(&text(&format!("{FOLDER}/rules.yml"))).unwrap();
    file["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn alerts_use_metrics_that_exist_and_say_what_to_do() {
    let mut known = metrics();
    known.extend(rules().iter().filter_map(|rule| Some(rule["record"].as_str()?.to_owned())));
    let mut alerts = BTreeSet::new();
    for rule in rules() {
        let used = names(rule["expr"].as_str().unwrap());
        assert!(used.is_subset(&known), "{used:?}: not all of them are on docs/metrics.md");
        let Some(alert) = rule["alert"].as_str() else { continue };
        assert!(alerts.insert(alert.to_owned()), "{alert} twice");
        assert!(["page", "ticket"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{alert}");
        for annotation in ["summary", "description", "runbook"] {
            assert!(rule["annotations"][annotation].is_string(), "{alert} has no {annotation}");
        }
    }
    assert!(alerts.len() >= 15, "{alerts:?}");
}

#[test]
fn every_panel_of_the_dashboard_asks_for_metrics_that_exist() {
    let known = metrics();
    let dashboard: Value = serde_json::from_str(&text(&format!("{FOLDER}/dashboard.json"))).unwrap();
    let (mut ids, mut queries) = (BTreeSet::new(), 0);
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: an id of its own");
        if panel["type"] == "row" {
            continue;
        }
        let (x, width) = (panel["gridPos"]["x"].as_u64().unwrap(), panel["gridPos"]["w"].as_u64().unwrap());
        assert!(x + width <= 24, "{title} does not fit");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        for target in panel["targets"].as_array().unwrap() {
            queries += 1;
            let expression = target["expr"].as_str().unwrap();
            let used = names(expression);
            assert!(used.is_subset(&known), "{title}: {used:?}: not all of them are on docs/metrics.md");
            assert!(!used.is_empty() || expression.contains("up{job=\"sheave-"), "{title}: {expression}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    assert!(queries >= 25, "{queries} queries");
}

#[test]
fn pods_annotations_and_labels_are_what_the_scrape_configuration_looks_for() {
    let config: Value = serde_yaml_ng::from_str(&text(&format!("{FOLDER}/prometheus.yml"))).unwrap();
    let labels = config["scrape_configs"][0]["relabel_configs"].as_array().unwrap();
    let sources: BTreeSet<_> = labels.iter().map(|rule| rule["source_labels"][0].as_str().unwrap()).collect();
    for (_, template) in crate::rendered::templates(&crate::rendered::kustomize("manifests/base")) {
        let meta = &template["metadata"];
        for (kind, keys) in [("annotation", &meta["annotations"]), ("label", &meta["labels"])] {
            let present = keys.as_object().unwrap().keys();
            let present: BTreeSet<_> =
                present.map(|key| key.replace(|c: char| !c.is_ascii_alphanumeric(), "_")).collect();
            let prefix = format!("__meta_kubernetes_pod_{kind}_");
            for wanted in sources.iter().filter_map(|source| source.strip_prefix(&prefix)) {
                assert!(present.contains(wanted), "{wanted} is not among {present:?}");
            }
        }
    }
}
