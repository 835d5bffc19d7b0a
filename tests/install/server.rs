//! The pages' commands and the manifests against a real API server: it takes every object, and the controller's account may do
//! what the controller does and nothing more. There are no nodes, so nothing runs: that is the cluster's suite.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave_harness::kube::{self, Kube};
use sheave_harness::run;
use sheave_harness::source::Source;
use sheave_harness::world::World;
use sheave_harness::{pages, sys};

const ACCOUNT: &str = "system:serviceaccount:sheave-system:sheave-controller";

#[expect(clippy::print_stdout, reason = "a test program with a main of its own reports by itself")]
fn main() -> Result<()> {
    if !sys::is_root() {
        println!("not root, so network namespaces can't be made: left out");
        return Ok(());
    }
    let run = run::enter()?;
    let world = World::build(&run, 1)?;
    let kube = Kube::start(&world)?;
    let shell = Shell { kubeconfig: kube.admin_kubeconfig()?, world: &world };
    // Rights that the harness gives controllers of its own.
    shell.run("kubectl delete clusterrole,clusterrolebinding sheave-controller")?;
    shell.run("kubectl -n sheave-system delete role,rolebinding sheave-controller")?;
    for (claim, test) in TESTS {
        let start = Instant::now();
        test(&shell, &kube).with_context(|| (*claim).to_owned())?;
        println!("{claim} ... ok ({:.1} s)", start.elapsed().as_secs_f64());
    }
    Ok(())
}

type Test = fn(&Shell, &Kube) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("the_api_server_takes_every_overlay", every_overlay),
    ("installing_as_the_pages_say_makes_what_they_say", install),
    ("the_controllers_account_may_do_its_work_and_nothing_else", rights),
    ("an_upgrade_changes_what_it_names_and_can_be_undone", upgrade),
    ("the_quick_start_is_the_installation", quick_start),
    ("one_job_cleans_one_node", clean),
    ("removing_leaves_no_object", remove),
];

/// An administrator's shell, in the project's folder.
struct Shell<'a> {
    kubeconfig: PathBuf,
    world: &'a World,
}

impl Shell<'_> {
    /// Runs lines as a person would, and stops at the first that fails.
    fn run(&self, lines: &str) -> Result<String> {
        let folder = kube::programs()?;
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let script = format!(
            "set -euo pipefail; cd {root}; export PATH={}:$PATH KUBECONFIG={}; {lines}",
            folder.display(),
            self.kubeconfig.display()
        );
        self.world.router.netns.output("bash", &["-c", &script])
    }

    /// Runs a block of a page.
    fn page(&self, page: &str, name: &str) -> Result<String> {
        self.run(&pages::commands(page, name)?).with_context(|| format!("{page}: {name}"))
    }

    fn json(&self, arguments: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.run(&format!("kubectl {arguments} -o json"))?)?)
    }
}

fn every_overlay(shell: &Shell, _: &Kube) -> Result<()> {
    for place in ["base", "overlays/kube-proxy-replacement", "overlays/eks"] {
        let said = shell.run(&format!("kubectl apply --dry-run=server --validate=strict -k manifests/{place} 2>&1"))?;
        // The namespace is the harness's, which applied it by other means.
        let odd = said.lines().find(|line| line.starts_with("Warning") && !line.contains("namespaces/sheave-system"));
        ensure!(odd.is_none(), "{place}: {odd:?}");
        for object in ["deployment.apps/sheave-controller", "daemonset.apps/sheave-proxy"] {
            ensure!(said.contains(&format!("{object} created (server dry run)")), "{place}: {said}");
        }
    }
    Ok(())
}

fn install(shell: &Shell, kube: &Kube) -> Result<()> {
    shell.run(&format!("api_server={}; {}", kube.address(), pages::commands("docs/install.md", "apply")?))?;
    let found =
        shell.run("kubectl -n sheave-system get deployment,daemonset,pdb,configmap,serviceaccount,service -o name")?;
    let found: BTreeSet<_> = found.lines().collect();
    for object in [
        "deployment.apps/sheave-controller",
        "daemonset.apps/sheave-proxy",
        "poddisruptionbudget.policy/sheave-controller",
        "configmap/sheave-api-server",
        "serviceaccount/sheave-controller",
        "serviceaccount/sheave-proxy",
        "service/sheave-discovery",
    ] {
        ensure!(found.contains(object), "{object} is not among {found:?}");
    }
    let address = shell.json("-n sheave-system get configmap sheave-api-server")?;
    ensure!(address["data"]["address"] == kube.address().to_string(), "{address}");
    Ok(())
}

fn rights(shell: &Shell, _: &Kube) -> Result<()> {
    let may = |what: &str| -> Result<bool> {
        let said = shell.run(&format!("kubectl auth can-i --as={ACCOUNT} {what} 2>/dev/null || true"))?;
        Ok(said.trim() == "yes")
    };
    for kind in
        ["services", "pods", "nodes", "namespaces", "endpointslices.discovery.k8s.io", "servicecidrs.networking.k8s.io"]
    {
        for verb in ["list", "watch"] {
            ensure!(may(&format!("{verb} {kind} --all-namespaces"))?, "{verb} {kind}");
        }
        ensure!(!may(&format!("update {kind} --all-namespaces"))?, "update {kind}");
    }
    for granted in [
        "get namespaces/kube-system",
        "create tokenreviews.authentication.k8s.io",
        "create subjectaccessreviews.authorization.k8s.io",
        "create leases -n sheave-system",
        "update leases/sheave-controller -n sheave-system",
        "update secrets/sheave-ca -n sheave-system",
        "get configmaps/sheave-discovery -n sheave-system",
    ] {
        ensure!(may(granted)?, "{granted} is refused");
    }
    for refused in [
        "get secrets -n sheave-system",
        "get secrets/other -n sheave-system",
        "get secrets/sheave-ca -n default",
        "list secrets -n sheave-system",
        "delete configmaps/sheave-discovery -n sheave-system",
        "create leases -n kube-system",
        "get namespaces/default",
        "create pods -n sheave-system",
        "create serviceaccounts/sheave-proxy --subresource=token -n sheave-system",
    ] {
        ensure!(!may(refused)?, "{refused} is granted");
    }
    let operator = "system:serviceaccount:sheave-system:sheave-cli";
    // kubectl's own question takes a resource that no server has for one without a group, so this is asked as controllers ask.
    let review = format!(
        r#"{{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {{"user": "{operator}",
        "resourceAttributes": {{"group": "sheave.io", "resource": "status", "verb": "get"}}}}}}"#
    );
    let said = shell.run(&format!("kubectl create -f - -o jsonpath='{{.status.allowed}}' <<<'{review}'"))?;
    ensure!(said.trim() == "true", "the operator's account, get status.sheave.io: {said}");
    for (what, expected) in [("get nodes", "no"), ("list pods -A", "no")] {
        let said = shell.run(&format!("kubectl auth can-i --as={operator} {what} 2>/dev/null || true"))?;
        ensure!(said.trim() == expected, "the operator's account, {what}: {said}");
    }
    let proxy = "system:serviceaccount:sheave-system:sheave-proxy";
    let said = shell.run(&format!("kubectl auth can-i --as={proxy} get nodes 2>/dev/null || true"))?;
    ensure!(said.trim() == "no", "the proxy's account: {said}");
    Ok(())
}

fn upgrade(shell: &Shell, _: &Kube) -> Result<()> {
    let image = || -> Result<String> {
        shell.run("kubectl -n sheave-system get daemonset sheave-proxy -o jsonpath='{.spec.template.spec.containers[0].image}'")
    };
    let before = image()?;
    shell.run(&format!("image=registry.example/sheave:2; {}", pages::commands("docs/install.md", "upgrade")?))?;
    ensure!(image()? == "registry.example/sheave:2", "{}", image()?);
    let account = "kubectl -n sheave-system get deployment sheave-controller -o jsonpath='{.spec.template.spec.containers[0].image}'";
    ensure!(shell.run(account)? == "registry.example/sheave:2");
    shell.run("kubectl apply -k manifests/overlays/kube-proxy-replacement")?;
    ensure!(image()? == before, "{}", image()?);
    Ok(())
}

/// The quick start in at most five commands: those of the page, and then waiting, for which there are no nodes here.
fn quick_start(_: &Shell, _: &Kube) -> Result<()> {
    let quick = pages::commands("README.md", "quickstart")?;
    let long = pages::commands("docs/install.md", "apply")? + &pages::commands("docs/install.md", "wait")?;
    ensure!(quick.lines().count() <= 5, "{quick}");
    for line in quick.lines() {
        ensure!(long.lines().any(|other| other == line), "{line} is not on the page");
    }
    Ok(())
}

fn clean(shell: &Shell, kube: &Kube) -> Result<()> {
    // As long as the cloud's names are, and one that no proxy can run on.
    let long = format!("ip-10-0-0-2.{}1.example", "region-".repeat(8));
    for (node, os) in [("n1", "linux"), (long.as_str(), "linux"), ("w1", "windows")] {
        let meta = serde_json::json!({"name": node, "labels": {"kubernetes.io/os": os}});
        kube.apply(&serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": meta}))?;
    }
    shell.page("docs/install.md", "clean")?;
    let jobs = shell.json("-n kube-system get jobs -l app.kubernetes.io/name=sheave-clean")?;
    let nodes = jobs["items"].as_array().into_iter().flatten().map(|job| {
        let pod = &job["spec"]["template"]["spec"];
        let flag = format!("--node-name={}", pod["nodeName"].as_str().unwrap_or_default());
        ensure!(
            pod["containers"][0]["args"].as_array().is_some_and(|all| all.contains(&flag.as_str().into())),
            "{job}"
        );
        Ok(pod["nodeName"].as_str().unwrap_or_default().to_owned())
    });
    let nodes = nodes.collect::<Result<BTreeSet<_>>>()?;
    ensure!(nodes == BTreeSet::from(["n1".to_owned(), long]), "{nodes:?}");
    Ok(())
}

fn remove(shell: &Shell, _: &Kube) -> Result<()> {
    // Nobody here ends namespaces, so what the command waits for would never come.
    let lines = pages::commands("docs/install.md", "remove")?.replace("kubectl delete", "kubectl delete --wait=false");
    shell.run(&lines)?;
    let left = shell.run("kubectl get clusterrole,clusterrolebinding -l app.kubernetes.io/part-of=sheave -o name")?;
    ensure!(left.is_empty(), "{left}");
    let namespace = shell.json("get namespace sheave-system")?;
    ensure!(namespace["metadata"]["deletionTimestamp"].is_string(), "{namespace}");
    Ok(())
}
