//! Sheave's accounts may do what they do, and nothing else: the API server's audit log against the Roles of the manifests.
//!
//! What happens rarely is caused, where the log has nothing of it yet: replicas that end and start, a lost Secret and ConfigMap.

pub(crate) mod grants;
pub(crate) mod log;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sheave_harness::wait::until;

use crate::check::SOON;
use crate::context::{Case, Context, sheave};
use crate::shell::{ready, shell};
use grants::Grant;
use log::{ACCOUNTS, Call};

/// Works in any order; late in a run the log has the most.
pub(crate) const CASES: &[Case] =
    &[sheave("sheaves_accounts_are_granted_all_that_they_use_and_nothing_else", roles).long()];

const SYSTEM: &str = "sheave-system";
/// The overlay that the cluster has, as people apply it.
const OVERLAY: &str = "manifests/overlays/kube-proxy-replacement";
/// A new CA signs after 20 s at the earliest and the old one goes 60 s later; each is noticed within 5 s.
const RARE: Duration = Duration::from_secs(150);

fn roles(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    let objects = objects(it, &format!("kubectl kustomize {OVERLAY}"))?;
    installed(it, &objects)?;
    let (asked, grants): (Vec<_>, Vec<_>) = grants::grants(&objects)?.into_iter().partition(Grant::is_asked_for);
    asked_by_controllers(it, &asked)?;
    all_allowed(&calls(it)?)?;
    a_dead_replica(it)?;
    if !unused(&grants, &calls(it)?).is_empty() {
        rare(it)?;
    }
    let all = until("every rule of the manifests is used", SOON, || {
        std::thread::sleep(Duration::from_secs(1)); // reading the log costs more than a look
        let all = calls(it)?;
        let unused = unused(&grants, &all);
        ensure!(unused.is_empty(), "nobody has used:\n    {}", unused.join("\n    "));
        Ok(all)
    })?;
    all_allowed(&all)?;
    if let Some(call) = all.iter().find(|call| call.who != format!("{ACCOUNTS}sheave-controller")) {
        bail!("only the controller has any business with the API server: {call}");
    }
    ready(it)
}

/// What no call needs, but the answer of a controller to the `sheave` command does: it asks the API server whether the caller may.
/// Without the rule the answer would be a refusal (tests/golden/cli/user-forbidden.txt).
fn asked_by_controllers(it: &Context<'_>, grants: &[Grant]) -> Result<()> {
    let asked: Vec<_> = grants.iter().map(Grant::to_string).collect();
    ensure!(asked == ["ClusterRole sheave-operator: get status.sheave.io"], "{asked:?}");
    shell(it, "world", "target/debug/sheave status").map(drop)
}

fn calls(it: &Context<'_>) -> Result<Vec<Call>> {
    log::calls(&it.fixture.state, ACCOUNTS)
}

pub(crate) fn all_allowed(calls: &[Call]) -> Result<()> {
    let forbidden: Vec<_> = calls.iter().filter(|call| call.forbidden()).map(Call::to_string).collect();
    ensure!(forbidden.is_empty(), "{} calls were forbidden:\n    {}", forbidden.len(), forbidden.join("\n    "));
    Ok(())
}

fn unused(grants: &[Grant], calls: &[Call]) -> Vec<String> {
    grants::unused(grants, calls).into_iter().map(Grant::to_string).collect()
}

/// What a command prints as manifests, as objects.
pub(crate) fn objects(it: &Context<'_>, command: &str) -> Result<Vec<Value>> {
    let text =
        shell(it, "world", &format!("{command} | kubectl create --dry-run=client --validate=false -o json -f -"))?;
    let mut all = Vec::new();
    for document in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        let document = document.with_context(|| command.to_owned())?;
        match document["items"].as_array() {
            Some(items) => all.extend(items.iter().cloned()),
            None => all.push(document),
        }
    }
    Ok(all)
}

/// The cluster has the manifests' rules, not those of an earlier version.
pub(crate) fn installed(it: &Context<'_>, objects: &[Value]) -> Result<()> {
    let mut found = 0;
    for object in objects {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, meta) = (text(&object["kind"]), &object["metadata"]);
        if kind == "Role" || kind == "ClusterRole" {
            let namespace = if kind == "Role" { text(&meta["namespace"]) } else { String::new() };
            let live = it.fixture.api.read(&kind, &namespace, &text(&meta["name"]))?;
            ensure!(
                live["rules"] == object["rules"],
                "the cluster's {kind} {} is another: {}",
                meta["name"],
                live["rules"]
            );
            found += 1;
        }
    }
    ensure!(found > 0, "no role among the manifests");
    Ok(())
}

/// A replica that died long ago and left its Lease, which the leader deletes.
fn a_dead_replica(it: &Context<'_>) -> Result<()> {
    let name = "sheave-replica-192-0-2-9-15010";
    it.fixture.api.apply(&json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": SYSTEM,
            "labels": {"app.kubernetes.io/component": "sheave-controller-replica"}},
        "spec": {"holderIdentity": "192.0.2.9:15010", "leaseDurationSeconds": 30, "renewTime": "2020-01-01T00:00:00.000000Z"},
    }))?;
    until("the leader deletes the Lease of a replica that is gone", SOON, || {
        ensure!(!exists(it, "coordination.k8s.io/v1", "leases", name)?, "it is still there");
        Ok(())
    })?;
    let deleted =
        |call: &Call| (call.verb.as_str(), call.resource.as_str(), call.name.as_str()) == ("delete", "leases", name);
    let mut calls = calls(it)?.into_iter();
    ensure!(calls.any(|call| deleted(&call) && call.code == 200), "the audit log doesn't say that a controller did");
    Ok(())
}

fn exists(it: &Context<'_>, group: &str, resource: &str, name: &str) -> Result<bool> {
    let path = format!("/apis/{group}/namespaces/{SYSTEM}/{resource}/{name}");
    match it.fixture.api.request("GET", &path, None)? {
        (200, _) => Ok(true),
        (404, _) => Ok(false),
        (status, answer) => bail!("{path}: {status}: {answer}"),
    }
}

/// Replicas end and start anew, and the leader makes a new Secret, which brings a new CA, and a new ConfigMap.
fn rare(it: &Context<'_>) -> Result<()> {
    let api = &it.fixture.api;
    for pod in api.list("Pod", SYSTEM)? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        if name.starts_with("sheave-controller-") {
            let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().and_then(|it| it.try_into().ok());
            api.delete("Pod", SYSTEM, name, grace.context("a pod without a grace period")?)?;
        }
    }
    ready(it)?;
    for (kind, name) in [("Secret", "sheave-ca"), ("ConfigMap", "sheave-discovery")] {
        let uid = api.read(kind, SYSTEM, name)?["metadata"]["uid"].clone();
        api.delete(kind, SYSTEM, name, 0)?;
        until(&format!("the leader writes {kind} {name} again"), RARE, || {
            let now = api.read(kind, SYSTEM, name)?["metadata"]["uid"].clone();
            ensure!(now != uid, "it is the same");
            Ok(())
        })?;
    }
    until("the new CA has taken the old one's place", RARE, || {
        std::thread::sleep(Duration::from_secs(1));
        let data = api.read("Secret", SYSTEM, "sheave-ca")?["data"].clone();
        ensure!(data["previous.crt"].is_null(), "the old one is still trusted");
        Ok(())
    })
}
