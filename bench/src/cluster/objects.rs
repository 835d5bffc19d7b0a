//! What the parts of a round read from the API server and write to it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sheave_harness::kube::Api;

/// Whether a Deployment or DaemonSet has every pod that it wants, of its newest template and ready.
pub(super) fn current(api: &Api, kind: &str, namespace: &str, name: &str) -> Result<bool> {
    let object = api.read(kind, namespace, name)?;
    let status = &object["status"];
    let number = |field: &str| status[field].as_u64().unwrap_or(0);
    let [wanted, all, updated, ready] = match kind {
        "DaemonSet" => {
            let wanted = number("desiredNumberScheduled");
            [wanted, number("currentNumberScheduled"), number("updatedNumberScheduled"), number("numberAvailable")]
        }
        _ => {
            let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
            [wanted, number("replicas"), number("updatedReplicas"), number("availableReplicas")]
        }
    };
    let seen = status["observedGeneration"] == object["metadata"]["generation"];
    Ok(seen && wanted > 0 && [all, updated, ready].iter().all(|it| *it == wanted))
}

/// An annotation of a DaemonSet's pods, or none any more: every pod is replaced.
pub(super) fn annotate(api: &Api, namespace: &str, name: &str, value: &Value) -> Result<()> {
    let template = json!({"metadata": {"annotations": {"bench/update": value}}});
    api.patch("DaemonSet", namespace, name, "", &json!({"spec": {"template": template}}))
}

/// Seconds from `started` (since 1970) until the last pod of CoreDNS was ready, as the kubelets noted it.
pub(super) fn coredns_ready(api: &Api, started: f64) -> Result<f64> {
    ensure!(current(api, "Deployment", "kube-system", "coredns")?, "CoreDNS is not ready");
    let list = api.get("/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns")?;
    let pods = list["items"].as_array().context("a list of pods")?;
    let since = |pod: &Value| condition(pod, "Ready")["lastTransitionTime"].as_str().and_then(seconds);
    let times: Vec<f64> = pods.iter().map(|pod| since(pod).context("a pod's readiness")).collect::<Result<_>>()?;
    let last = times.into_iter().reduce(f64::max).context("no pods of CoreDNS")?;
    Ok(last - started)
}

/// A condition of an object, or null.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().find(|it| it["type"] == kind).unwrap_or(&Value::Null)
}

/// Seconds since 1970 of a time as the API writes it, `2026-01-31T23:59:58Z`: days by Hinnant's `days_from_civil`
/// (howardhinnant.github.io/date_algorithms.html).
fn seconds(text: &str) -> Option<f64> {
    let numbers: Vec<i64> =
        text.strip_suffix('Z')?.split(['-', 'T', ':']).map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [year, month, day, hour, minute, second] = numbers.try_into().ok()?;
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + day_of_era - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_api_are_seconds_since_1970() {
        // By `date -u -d TEXT +%s`.
        for (text, wanted) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2000-02-29T12:34:56Z", 951_827_696.0),
            ("2026-11-23T04:12:35Z", 1_795_407_155.0),
            ("2100-03-01T00:00:00Z", 4_107_542_400.0),
        ] {
            assert_eq!(seconds(text), Some(wanted), "{text}");
        }
        assert_eq!(seconds("2026-11-23"), None);
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn a_condition_is_found_by_its_type() {
        let pod =
            json!({"status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False"}]}});
        assert_eq!(condition(&pod, "B")["status"], "False");
        assert!(condition(&pod, "C").is_null() && condition(&json!({}), "A").is_null());
    }
}
