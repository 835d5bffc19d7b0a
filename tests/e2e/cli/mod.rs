//! `sheave`, in situations that are really caused: what it prints and how it ends, against tests/golden/cli.

mod direct;
mod golden;
mod node;
mod services;
mod status;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sheave_harness::kube::{self, Kube, SYSTEM};

use self::golden::Golden;
use crate::case::{Case, Proof, both, kube};
use crate::context::Context;
use crate::trust::ByTokens;

/// It asks about connections and makes none.
const ASKS: Proof = Proof::Own("it asks about what is served, and programs are restarted");

pub(crate) const CASES: &[Case] = &[
    kube("sheave_services_shows_what_each_node_serves_and_what_is_wrong", services::run).proof(ASKS),
    kube("sheave_status_and_check_tell_what_is_wrong_with_a_cluster", status::run).proof(ASKS),
    both("sheave_asks_by_an_operators_certificate_and_by_a_unix_socket", direct::run).proof(ASKS),
    kube("sheave_check_node_finds_what_is_in_a_nodes_way", node::run).proof(ASKS),
];

/// The operator's side of a case with tokens.
struct Operator<'a> {
    it: &'a Context,
    kube: &'a Kube,
    golden: Golden,
    kubeconfig: String,
    /// Where tokens and CAs of this case are.
    folder: PathBuf,
}

impl<'a> Operator<'a> {
    fn new(it: &'a Context) -> Result<Self> {
        let kube = it.kube.as_deref().context("this case needs an API server")?;
        let folder = it.cluster.world.run.folder.join(format!("cli-{}", it.namespace));
        fs::create_dir_all(&folder)?;
        let known = vec![
            (folder.display().to_string(), "FOLDER".to_owned()),
            (it.cluster.world.run.folder.display().to_string(), "RUN".to_owned()),
            (it.namespace.clone(), "NS".to_owned()),
        ];
        let golden = Golden { place: it.cluster.world.router.clone(), known };
        let kubeconfig = kube.admin_kubeconfig()?.display().to_string();
        let all = Self { it, kube, golden, kubeconfig, folder };
        all.kubectl("apply -n sheave-system -f manifests/base/cli-rbac.yaml")?;
        Ok(all)
    }

    /// As an administrator, in the project's folder.
    fn kubectl(&self, arguments: &str) -> Result<String> {
        let (programs, root) = (kube::programs()?, concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let line = format!("cd {root}; {}/kubectl --kubeconfig {} {arguments}", programs.display(), self.kubeconfig);
        self.it.cluster.world.router.netns.output("bash", &["-c", &line])
    }

    /// Asks the replicas that serve from port `first` on, with a token that the program gets by itself.
    fn asks(&self, name: &str, first: u16, arguments: &[&str]) -> Result<()> {
        self.asks_with(name, first, &["--kubeconfig", &self.kubeconfig], arguments)
    }

    /// The same with other proofs.
    fn asks_with(&self, name: &str, first: u16, proof: &[&str], arguments: &[&str]) -> Result<()> {
        let replicas = [0, 1].map(|replica| crate::trust::address(first, replica).to_string()).join(",");
        let mut all = arguments.to_vec();
        all.extend(["--controller", &replicas]);
        all.extend(proof);
        self.golden.expect(name, &[], &all)
    }

    /// A token of an account of the system's namespace, in a file.
    fn token(&self, account: &str, audience: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{account}/token");
        let spec = json!({"audiences": [audience], "expirationSeconds": 3600});
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let (status, answer) = self.kube.api.request("POST", &path, Some(&request))?;
        let answer: Value = serde_json::from_str(&answer)?;
        let token = answer["status"]["token"].as_str().with_context(|| format!("{path}: {status}: {answer}"))?;
        self.file(&format!("{account}-{audience}"), token)
    }

    fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    /// The CA that signs for controllers, in a file.
    fn authority(&self) -> Result<String> {
        let data = self.kube.api.read("ConfigMap", SYSTEM, "sheave-discovery")?["data"].clone();
        self.file("ca.crt", data["ca.crt"].as_str().context("no CA")?)
    }

    /// Masks the addresses of a deployment's pods, which depend on what ran before.
    fn know(&mut self, of: &str, addresses: impl IntoIterator<Item = sheave_harness::address::Pair>) {
        for (number, pair) in addresses.into_iter().enumerate() {
            for (family, address) in ["v4", "v6"].into_iter().zip(pair.both()) {
                self.golden.known.push((address.to_string(), format!("{of}{}-{family}", number + 1)));
            }
        }
        // Of two addresses, one may begin with the other.
        self.golden.known.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    }
}

/// What every case with tokens begins with: controllers and proxies that know each other by them.
fn by_tokens(it: &Context) -> Result<ByTokens<'_>> {
    let all = ByTokens::start(it)?;
    ensure!(it.cluster.controller_runs(0) && it.cluster.controller_runs(1), "both replicas run");
    Ok(all)
}
