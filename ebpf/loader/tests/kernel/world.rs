//! A node to itself: network namespace, bpffs, cgroup, Services.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sheave_loader::{Loader, Options, Sizes};
use sheave_model::{
    AppProtocol, ContentHash, Delta, Endpoint, Protocol, Resource, Service, ServiceKey, ServicePort, Snapshot, Store,
    Upsert,
};
use sheave_reconcile::{Reconciler, Report};

/// Tells the inner run from the outer one.
const INNER: &str = "SHEAVE_TEST_INSIDE";
/// How the names of our cgroups start.
const PREFIX: &str = "sheave-loader-test-";
/// The mark of the proxy's own sockets.
pub(crate) const MARK: u32 = 0x0020_0000;

/// Runs a test's body in namespaces of its own, if this is root.
pub(crate) fn inside(name: &str, body: impl FnOnce(&mut World) -> Result<()>) {
    if std::env::var_os(INNER).is_some() {
        let mut world = World::new().unwrap();
        body(&mut world).unwrap();
        return;
    }
    if !fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t") {
        eprintln!("{name}: skipped, because loading BPF programs takes root");
        return;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads", "1"])
        .env(INNER, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespaces");
}

pub(crate) fn run(command: &str) -> Result<()> {
    let words: Vec<_> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output()?;
    if !output.status.success() {
        bail!("{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The node.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) store: Store,
    cgroup: Cgroup,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Result<Self> {
        run("ip link set lo up")?;
        let folder = tempfile::tempdir()?;
        run(&format!("mount -t bpf bpf {}", folder.path().display()))?;
        let cgroup = Cgroup::new()?;
        let options = Options {
            bpffs: folder.path().to_owned(),
            cgroup: cgroup.path.clone(),
            netns_cookie: sheave_loader::netns_cookie()?,
            own_mark: MARK,
            own_mask: MARK,
            sizes: Sizes { flows: 1024, ..Sizes::default() },
        };
        Ok(Self { options, store: Store::default(), cgroup, _folder: folder })
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup.path
    }

    /// Attaches the hooks and starts from what is there.
    pub(crate) fn node(&self) -> Result<Node> {
        let loader = Loader::open(&self.options)?;
        let reconciler = Reconciler::new(&loader.restored()?);
        Ok(Node { loader, reconciler })
    }

    /// Adds or replaces a Service.
    pub(crate) fn put(&mut self, service: Service) -> Snapshot {
        let upserts = vec![Upsert { hash: ContentHash(0), resource: Resource::Service(service) }];
        self.store.apply(Delta { upserts, ..Delta::default() }).clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Before the folder's own removal, which can't look into a bpffs that is still mounted.
        let _ = sheave_loader::clean(&self.options.bpffs);
        let _ = run(&format!("umount {}", self.options.bpffs.display()));
    }
}

/// A cgroup that this process is in.
struct Cgroup {
    path: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    fn new() -> Result<Self> {
        let mount = sheave_loader::find_cgroup2()?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2 line")?;
        let before = mount.join(own);
        remove_leftovers(&mount)?;
        let path = mount.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Self { path, before };
        join(&cgroup.path)?;
        Ok(cgroup)
    }
}

/// Removes cgroups of runs that were killed. Their names end with their process ids.
fn remove_leftovers(mount: &Path) -> Result<()> {
    for entry in fs::read_dir(mount)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(id) = name.strip_prefix(PREFIX)
            && !Path::new("/proc").join(id).exists()
        {
            let _ = fs::remove_dir(path.join("other"));
            let _ = fs::remove_dir(path);
        }
    }
    Ok(())
}

/// Moves this process, all threads of it.
pub(crate) fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("joining {}", cgroup.display()))
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = join(&self.before);
        let _ = fs::remove_dir(&self.path);
    }
}

/// A proxy, as far as the kernel sees one.
pub(crate) struct Node {
    pub(crate) loader: Loader,
    pub(crate) reconciler: Reconciler,
}

impl Node {
    pub(crate) fn update(&mut self, snapshot: &Snapshot) -> Report {
        self.reconciler.update(snapshot, Instant::now(), &mut self.loader)
    }

    /// Connections that the hook pointed at a Service's backends.
    pub(crate) fn connections(&self) -> u64 {
        self.reconciler.targets().map(|(id, _)| self.loader.connections(id).unwrap()).sum()
    }
}

/// A Service with one port whose endpoints are these sockets.
pub(crate) fn service(address: &str, port: u16, protocol: Protocol, endpoints: &[SocketAddr]) -> Service {
    let endpoint = |socket: &SocketAddr| Endpoint {
        address: socket.ip(),
        ports: vec![socket.port()],
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
    };
    let address: IpAddr = address.parse().unwrap();
    Service {
        key: ServiceKey::new("test", format!("{address}-{port}-{protocol}")),
        created: 0,
        cluster_ips: vec![address],
        external_ips: vec![],
        load_balancer_ips: vec![],
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity: None,
        source_ranges: vec![],
        ports: vec![ServicePort { name: "".into(), protocol, port, node_port: None, app: AppProtocol::Opaque }],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}
