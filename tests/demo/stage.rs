//! The demo's set: a world of two nodes, a cluster over a folder, the manifests, and four deployments.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use sheave_harness::cluster::{Cluster, DataPath, Options};
use sheave_harness::deployment::Deployment;
use sheave_harness::metrics;
use sheave_harness::run::Run;
use sheave_harness::source::Folder;
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::world::{Node, World};

/// Namespace of everything in the manifests.
pub(crate) const NAMESPACE: &str = "demo";
const HTTP: &[(Kind, u16)] = &[(Kind::Http, 8000)];
const UDP: &[(Kind, u16)] = &[(Kind::Udp, 5353)];

/// What the story plays on.
pub(crate) struct Stage {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) web: Deployment,
    pub(crate) shop: Deployment,
    pub(crate) api: Deployment,
    pub(crate) echo: Deployment,
}

impl Stage {
    /// Builds it and waits until the proxies are ready.
    pub(crate) fn set(run: &Run) -> Result<Self> {
        let world = Arc::new(World::build(run, 2)?);
        let folder = Folder::create(run.folder.join("yaml"))?;
        apply_manifests(&folder)?;
        let options = Options { name: "demo".into(), path: DataPath::Auto, tls: true, replicas: 1 };
        let cluster = Arc::new(Cluster::start(&world, Arc::new(folder), options)?);
        let deployment = |name: &str, count: usize, servers| -> Result<Deployment> {
            let mut deployment = Deployment::new(&cluster, NAMESPACE, name);
            for index in 0..count {
                deployment.add(1 + index % 2, servers)?;
            }
            Ok(deployment)
        };
        let (web, shop, api) = (deployment("web", 1, HTTP)?, deployment("shop", 2, HTTP)?, deployment("api", 2, HTTP)?);
        let echo = deployment("echo", 2, UDP)?;
        Ok(Self { cluster, web, shop, api, echo })
    }

    /// Adds `web` pods in turn on both nodes, or takes the newest away.
    pub(crate) fn scale_web(&mut self, count: usize) -> Result<()> {
        while self.web.members().len() > count {
            self.web.delete(self.web.members().len() - 1)?;
        }
        while self.web.members().len() < count {
            self.web.add(1 + self.web.members().len() % 2, HTTP)?;
        }
        Ok(())
    }
}

/// Which data path a node's proxy chose, and why.
pub(crate) fn data_path(node: &Node) -> Result<String> {
    let info = metrics::proxy(node)?.lines("sheave_datapath_info");
    info.into_iter().next().context("the proxy shows no sheave_datapath_info")
}

/// The files of manifests/demo, as they are: the controller reads what a reader of the repository reads.
fn apply_manifests(folder: &Folder) -> Result<()> {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/demo");
    for entry in fs::read_dir(&manifests).with_context(|| format!("{}", manifests.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a manifest's name")?;
        folder.write_raw(name, &fs::read(&path)?)?;
    }
    Ok(())
}
