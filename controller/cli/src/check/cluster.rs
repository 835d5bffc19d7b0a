//! The cluster: its API server, its nodes, who else serves Services, and then what is installed.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822};
use kube::api::{Api, ListParams};
use kube::client::Body;

use super::{controllers, installed, kernel, version};
use crate::access::kube::{Home, said};
use crate::args::Common;
use crate::finding::{Finding, Level};

/// The first whose tokens name their pod's node unasked (ServiceAccountTokenPodNodeInfo, KEP-4193).
const OLDEST_API: (u32, u32) = (1, 30);

/// Logs can't be compared, and short-lived tokens are refused, by clocks that differ by more, in seconds.
const CLOCK: i64 = 5;

/// Nodes that a finding names.
const NAMED: usize = 5;

/// Everything.
///
/// # Errors
/// Where there is no kubeconfig, or the API server doesn't answer.
pub(super) async fn look(common: &Common) -> anyhow::Result<Vec<Finding>> {
    let home = Home::open(common).await?;
    let mut findings = api_server(&home).await?;
    findings.extend(nodes(&home).await);
    findings.extend(others(&home).await);
    let (found, installed) = installed::look(&home).await;
    findings.extend(found);
    if installed || !common.controller.is_empty() {
        findings.extend(controllers::look(common).await);
    }
    Ok(findings)
}

/// What can't be read doesn't end the rest.
pub(super) fn unread(about: &str, error: kube::Error) -> Finding {
    Finding::warning(about, format!("can't be looked at: {}", said(error)), "this needs more rights, or another try")
}

async fn api_server(home: &Home) -> anyhow::Result<Vec<Finding>> {
    let request = http::Request::get("/version").body(Body::empty())?;
    let response = home.client.send(request).await;
    let response = response.map_err(|error| said(error).context("the API server doesn't answer"))?;
    let date = response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
    let body = response.into_body().collect_bytes().await.map_err(said)?;
    let told = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
    let told = told["gitVersion"].as_str().unwrap_or("unknown").to_owned();
    let (major, minor) = OLDEST_API;
    let wanted = format!("Kubernetes {major}.{minor} or newer is needed");
    let mut findings = vec![match version(&told) {
        Some(found) if found >= OLDEST_API => Finding::ok("API server", told),
        Some(_) => Finding::error("API server", format!("{told} is too old"), wanted),
        None => Finding::warning("API server", format!("its version {told:?} can't be read"), wanted),
    }];
    if let Some(at) = date.and_then(|date| rfc2822::parse(&date).ok()) {
        findings.push(clock(at.timestamp().as_second(), Timestamp::now().as_second()));
    }
    Ok(findings)
}

fn clock(theirs: i64, ours: i64) -> Finding {
    let off = theirs.abs_diff(ours);
    if off > CLOCK.unsigned_abs() {
        let message = format!("this machine's differs from the API server's by {off} s");
        return Finding::warning(
            "clock",
            message,
            "set both by NTP: tokens and certificates are refused by a clock that is wrong",
        );
    }
    Finding::ok("clock", format!("within {CLOCK} s of the API server's"))
}

async fn nodes(home: &Home) -> Vec<Finding> {
    let all = match Api::<Node>::all(home.client.clone()).list(&ListParams::default()).await {
        Ok(nodes) => nodes.items,
        Err(error) => return vec![unread("nodes", error)],
    };
    let mut findings = vec![Finding::ok("nodes", format!("{} of them", all.len()))];
    let named = |wrong: &dyn Fn(&Node) -> bool| -> Option<String> {
        let names: Vec<_> =
            all.iter().filter(|node| wrong(node)).filter_map(|node| node.metadata.name.clone()).collect();
        let more = names.len().saturating_sub(NAMED);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| names[..names.len() - more].join(", ") + &rest)
    };
    let release = |node: &Node| {
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        info.map(|info| info.kernel_version.clone()).unwrap_or_default()
    };
    let old = |node: &Node| kernel::judge(&release(node)).level == Level::Error;
    if let Some(names) = named(&old) {
        let message = format!("Linux of {names} is too old");
        findings.push(Finding::error(
            "nodes",
            message,
            "Linux 5.14 or newer is needed; `sheave check --node` there says more",
        ));
    }
    let unready = |node: &Node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter(|one| one.type_ == "Ready").all(|one| one.status != "True")
    };
    if let Some(names) = named(&unready) {
        findings.push(Finding::warning("nodes", format!("{names} not Ready"), "kubectl describe node says why"));
    }
    findings
}

/// Who else serves Services: DaemonSets of these names, anywhere.
async fn others(home: &Home) -> Vec<Finding> {
    let sets = match Api::<DaemonSet>::all(home.client.clone()).list(&ListParams::default()).await {
        Ok(sets) => sets.items,
        Err(error) => return vec![unread("kube-proxy", error)],
    };
    let running = |set: &&DaemonSet| set.status.as_ref().is_some_and(|status| status.current_number_scheduled > 0);
    let find = |name: &str| sets.iter().filter(running).find(|set| set.metadata.name.as_deref() == Some(name));
    let place = |set: &DaemonSet| {
        let number = set.status.as_ref().map_or(0, |status| status.current_number_scheduled);
        format!("runs on {number} nodes ({}/{})", set.metadata.namespace.as_deref().unwrap_or_default(), name(set))
    };
    let mut findings = Vec::new();
    match find("kube-proxy") {
        Some(set) => findings.push(Finding::warning(
            "kube-proxy",
            place(set),
            "both can serve Services for a while; docs/install.md says how to take it away once every proxy is ready",
        )),
        None => findings.push(Finding::ok("kube-proxy", "none runs as a DaemonSet")),
    }
    if let Some(set) = find("cilium") {
        let remedy = "with kubeProxyReplacement it serves Services itself: turn that off, or leave Services to it";
        findings.push(Finding::warning("Cilium", place(set), remedy));
    }
    findings
}

fn name(set: &DaemonSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_by_a_little() {
        assert_eq!(clock(1000, 1005).level, Level::Ok);
        let off = clock(1000, 900);
        assert!(off.level == Level::Warning && off.message.contains("100 s"), "{off:?}");
        let parsed = rfc2822::parse("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(parsed.timestamp().as_second(), 784_111_777, "RFC 9110's own example");
    }
}
