//! What is installed, as the API server's objects say.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;

use super::certificate;
use super::cluster::unread;
use crate::access::kube::{CONFIG_MAP, CONTROLLERS, Home};
use crate::finding::Finding;

const CONTROLLER: &str = "sheave-controller";
const PROXY: &str = "sheave-proxy";
const API_SERVER: &str = "sheave-api-server";

/// Everything, and whether anything is there.
pub(super) async fn look(home: &Home) -> (Vec<Finding>, bool) {
    let controller = home.api::<Deployment>().get_opt(CONTROLLER).await;
    let proxy = home.api::<DaemonSet>().get_opt(PROXY).await;
    let discovery = home.api::<ConfigMap>().get_opt(CONFIG_MAP).await;
    if matches!((&controller, &proxy, &discovery), (Ok(None), Ok(None), Ok(None))) {
        let mut findings = vec![Finding::ok("installation", format!("none in namespace {} yet", home.namespace))];
        findings.extend(api_server(home).await);
        return (findings, false);
    }
    let mut findings = Vec::new();
    let mut images: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    match controller {
        Ok(Some(deployment)) => {
            image(&mut images, CONTROLLER, deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
            findings.push(deployed(&deployment));
        }
        Ok(None) => findings.push(missing(&format!("Deployment {CONTROLLER}"))),
        Err(error) => findings.push(unread(CONTROLLER, error)),
    }
    match proxy {
        Ok(Some(set)) => {
            image(&mut images, PROXY, set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
            findings.extend(everywhere(&set));
        }
        Ok(None) => findings.push(missing(&format!("DaemonSet {PROXY}"))),
        Err(error) => findings.push(unread(PROXY, error)),
    }
    if images.len() > 1 {
        let each = images.iter().map(|(image, who)| format!("{image} ({})", who.join(", "))).collect::<Vec<_>>();
        findings.push(Finding::warning("images", each.join(" and "), "as it should be during an upgrade only"));
    }
    match discovery {
        Ok(Some(map)) => findings.extend(directory(home, &map).await),
        Ok(None) => findings.push(Finding::error(
            format!("ConfigMap {CONFIG_MAP}"),
            "it is not there, so new nodes find no controller",
            "the leader writes it within seconds; if it doesn't, its log says why",
        )),
        Err(error) => findings.push(unread(CONFIG_MAP, error)),
    }
    (findings, true)
}

/// The address by which controllers reach the API server has to be there before they are, where kube-proxy is not.
async fn api_server(home: &Home) -> Option<Finding> {
    match home.api::<ConfigMap>().get_opt(API_SERVER).await {
        Ok(Some(map)) => {
            let address = map.data.as_ref().and_then(|data| data.get("address")).map_or("nothing", String::as_str);
            Some(Finding::ok(format!("ConfigMap {API_SERVER}"), format!("says {address}")))
        }
        Ok(None) => Some(Finding::warning(
            format!("ConfigMap {API_SERVER}"),
            "it is not there, and says where the API server is without any Service",
            "docs/install.md has the command that makes it",
        )),
        Err(error) => Some(unread(API_SERVER, error)),
    }
}

fn missing(what: &str) -> Finding {
    Finding::error(what, "it is not there", "apply the manifests again, or remove what is left of them")
}

fn image<'a>(images: &mut BTreeMap<String, Vec<&'a str>>, who: &'a str, pod: Option<&PodSpec>) {
    if let Some(image) = pod.and_then(|pod| pod.containers.first()).and_then(|container| container.image.clone()) {
        images.entry(image).or_default().push(who);
    }
}

fn deployed(deployment: &Deployment) -> Finding {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
    let (about, message) = (format!("Deployment {CONTROLLER}"), format!("{ready} of {wanted} ready"));
    let remedy = "/readyz of those that aren't says why: docs/troubleshooting.md";
    match ready {
        0 => Finding::error(about, message, remedy),
        _ if ready < wanted => Finding::warning(about, message, remedy),
        _ => Finding::ok(about, message),
    }
}

fn everywhere(set: &DaemonSet) -> Vec<Finding> {
    let status = set.status.clone().unwrap_or_default();
    let (about, wanted) = (format!("DaemonSet {PROXY}"), status.desired_number_scheduled);
    let message = format!("{} of {wanted} ready", status.number_ready);
    let mut findings = vec![if status.number_ready < wanted {
        Finding::error(&about, message, "`sheave status` names the nodes, /readyz there says why")
    } else {
        Finding::ok(&about, message)
    }];
    let updated = status.updated_number_scheduled.unwrap_or(wanted);
    if updated < wanted {
        let message = format!("{updated} of {wanted} have the newest template");
        findings.push(Finding::warning(
            &about,
            message,
            "a rollout is on its way, or a pod that isn't ready holds it up",
        ));
    }
    findings
}

/// What kubelets mount for proxies: its CA, and whether its addresses are those of pods that run.
async fn directory(home: &Home, map: &ConfigMap) -> Vec<Finding> {
    let about = format!("ConfigMap {CONFIG_MAP}");
    let value = |key: &str| map.data.as_ref().and_then(|data| data.get(key)).map(String::as_str).unwrap_or_default();
    let mut findings = vec![certificate::judge(&about, value("ca.crt"), Timestamp::now().as_second())];
    let listed: BTreeSet<&str> = value("controllers").lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if listed.is_empty() {
        findings.push(Finding::error(
            &about,
            "it names no controller",
            "the leader writes it; if it doesn't, its log says why",
        ));
        return findings;
    }
    let pods = home.api::<Pod>().list(&ListParams::default().labels(CONTROLLERS)).await;
    let pods = match pods {
        Ok(pods) => pods.items,
        Err(error) => return [findings, vec![unread("controllers' pods", error)]].concat(),
    };
    let addresses: BTreeSet<String> = pods
        .iter()
        .filter_map(|pod| pod.status.as_ref())
        .filter(|status| status.phase.as_deref() == Some("Running"))
        .flat_map(|status| status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()))
        .collect();
    let stale: Vec<&str> = listed.into_iter().filter(|line| !addresses.contains(host(line))).collect();
    if !stale.is_empty() {
        let message = format!("it names {}, where no controller's pod runs", stale.join(", "));
        findings.push(Finding::warning(
            about,
            message,
            "the leader puts it right within a minute; if not, its log says why",
        ));
    }
    findings
}

/// The address of `10.0.0.1:15010` or `[fd00::1]:15010`.
fn host(line: &str) -> &str {
    line.rsplit_once(':').map_or(line, |(host, _)| host).trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_without_ports_and_brackets() {
        assert_eq!((host("10.0.0.1:15010"), host("[fd00::1]:15010")), ("10.0.0.1", "fd00::1"));
    }
}
