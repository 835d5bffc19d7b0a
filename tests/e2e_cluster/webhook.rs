//! The API server asks a webhook by the Service's cluster IP: it is a program of the first node, and its connections are served as
//! everybody's.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_harness::kube::certificates;
use sheave_harness::testpod::admission::REFUSE;
use sheave_harness::wait::until;

use crate::check::SOON;
use crate::context::{Case, Context, case};

pub(crate) const CASES: &[Case] = &[case("the_api_server_reaches_a_webhook_by_its_service", webhook)];

/// Where the pods' webhook listens.
const PORT: u16 = 8443;
/// Objects that are refused until each of two pods must have been asked: all but one in 10^12 rows of them find both.
const ENOUGH: usize = 40;
/// What the API server waits for a webhook; a refusal comes at once.
const TIMEOUT: u64 = 10;

/// The configuration, which belongs to no namespace and would outlive the case.
struct Configured<'a>(&'a Context<'a>);

impl<'a> Configured<'a> {
    fn apply(it: &'a Context<'_>, certificate: &str) -> Result<Self> {
        let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, certificate);
        let rule =
            json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]});
        it.fixture.api.apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": it.namespace},
            "webhooks": [{
                "name": "hook.e2e.test", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail", "timeoutSeconds": TIMEOUT, "rules": [rule],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": it.namespace}},
                "clientConfig": {"caBundle": bundle, "service": {"namespace": it.namespace, "name": "hook", "port": 443}},
            }],
        }))?;
        Ok(Self(it))
    }
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        let it = self.0;
        if let Err(error) = it.fixture.api.delete("ValidatingWebhookConfiguration", "", &it.namespace, 0) {
            println!("    the webhook's configuration is left: {error:#}");
        }
    }
}

/// Asks for a ConfigMap: the API server's status, and its words.
fn create(it: &Context<'_>, name: &str, labels: &Value) -> Result<(u16, String)> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}});
    it.fixture.api.request("POST", &format!("/api/v1/namespaces/{}/configmaps", it.namespace), Some(&map))
}

fn webhook(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("hook", 2)?;
    let (certificate, key) = certificates::self_signed(&format!("hook.{}.svc", it.namespace))?;
    for pod in deployment.pods()? {
        pod.agent(&it.fixture.state).admit(PORT, &certificate, &key)?;
    }
    it.fixture.api.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": it.namespace},
        "spec": {"selector": {"app": "hook"}, "ports": [{"port": 443, "targetPort": PORT}]},
    }))?;
    let configured = Configured::apply(it, &certificate)?;
    let names = deployment.names()?;
    let refused = |name: &str| -> Result<String> {
        let (status, words) = create(it, name, &json!({REFUSE: "yes"}))?;
        let by = names.iter().find(|pod| words.contains(&format!("asked {pod}")));
        ensure!(status == 403 && by.is_some(), "{status}: {words}");
        Ok(by.cloned().unwrap_or_default())
    };
    until("the webhook is asked", SOON, || refused("first"))?;
    let mut asked: Vec<String> =
        (0..ENOUGH).map(|number| refused(&format!("refused-{number}"))).collect::<Result<_>>()?;
    asked.sort();
    asked.dedup();
    ensure!(asked.len() == names.len(), "only {asked:?} of {names:?} were asked");
    let (status, words) = create(it, "allowed", &json!({}))?;
    ensure!(status == 201, "an object that the webhook allows: {status}: {words}");
    deployment.scale(0)?;
    until("a webhook without a pod is refused at once", SOON, || {
        let start = std::time::Instant::now();
        let (status, words) = create(it, "nobody", &json!({}))?;
        let at_once = start.elapsed() < Duration::from_secs(TIMEOUT / 2);
        ensure!(
            status == 500 && at_once && words.contains("connection refused"),
            "{status} after {:?}: {words}",
            start.elapsed()
        );
        Ok(())
    })?;
    drop(configured);
    Ok(())
}
