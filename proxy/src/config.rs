//! What the flags mean, checked: a `Config` that exists can be run. Written to the log at start and shown at /debug/config.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::args::{Datapath, LogFormat, NodeArgs, RunArgs};
use crate::discovery::{MAX_CONTROLLERS, Proof, Sources};

/// Bits of packet marks that others use: 0x80 the VPC CNI, 0x4000 and 0x8000 kube-proxy and the kubelet.
const FOREIGN_MARKS: u32 = 0x80 | 0x4000 | 0x8000;
/// The most forwarding threads: beyond, SO_REUSEPORT's spreading gains nothing and memory is lost.
const MAX_THREADS: usize = 256;

/// A flag or a combination that can't work. The text names the flag and the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("--node-name is empty; give this node's metadata.name")]
    NoName,
    #[error(
        "{flag} {value:#x} is 0 or has bits that others use ({FOREIGN_MARKS:#x}); choose free bits, e.g. {example:#010x}"
    )]
    Mark { flag: &'static str, value: u32, example: u32 },
    #[error("--mark-reply {reply:#x} and --mark-own {own:#x} share bits; choose bits of their own for each")]
    MarksOverlap { reply: u32, own: u32 },
    #[error("{flag} is 0; choose {hint}")]
    Zero { flag: &'static str, hint: &'static str },
    #[error("--route-table {0} is one of the kernel's own (253 to 255); choose another")]
    RouteTable(u32),
    #[error("--threads {0} is more than {MAX_THREADS}")]
    Threads(usize),
    #[error("--discovery-vip {0:?} is not IP:PORT")]
    DiscoveryVip(String),
    #[error("--controller {0:?} is neither unix:PATH nor IP:PORT")]
    Endpoint(String),
    #[error("--controller names more than {MAX_CONTROLLERS} endpoints")]
    Endpoints,
    #[error("nothing says where the controller is; give --controller, or --discovery-dir with --token-file")]
    NoController,
    #[error(
        "--controller {0} needs certificates or a token; give --tls-dir (see sheave-controller init), --token-file, or a unix: endpoint"
    )]
    NoTls(SocketAddr),
    #[error("--log-level {filter:?} is no filter: {reason}; e.g. info")]
    Filter { filter: String, reason: String },
}

/// Where a replica of the controller listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Endpoint {
    /// A socket on this machine; the file's permissions say who may.
    Unix(PathBuf),
    /// Over TLS.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Which node this is and what of it is ours.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) cgroup: PathBuf,
    pub(crate) bpffs: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) admin_socket: PathBuf,
    pub(crate) mark_reply: u32,
    pub(crate) mark_own: u32,
    pub(crate) route_table: u32,
    pub(crate) proxy_port: u16,
    #[serde(skip)]
    pub(crate) log_format: LogFormat,
    pub(crate) log_level: String,
}

/// Everything that `run` needs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Config {
    #[serde(flatten)]
    pub(crate) node: NodeConfig,
    pub(crate) controllers: Vec<Endpoint>,
    pub(crate) tls_dir: Option<PathBuf>,
    /// The mounted ConfigMap.
    pub(crate) discovery_dir: Option<PathBuf>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) discovery_vip: Option<SocketAddr>,
    /// In seconds.
    pub(crate) exit_without_controller: Option<u64>,
    #[serde(serialize_with = "datapath_name")]
    pub(crate) datapath: Datapath,
    pub(crate) admin: SocketAddr,
    pub(crate) health: SocketAddr,
    /// Whether kube-proxy's metrics are shown, too.
    pub(crate) compat_metrics: bool,
    /// Empty: those of the node's facts.
    pub(crate) node_addresses: Vec<IpAddr>,
    pub(crate) threads: usize,
}

fn datapath_name<S: serde::Serializer>(datapath: &Datapath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match datapath {
        Datapath::Auto => "auto",
        Datapath::Ebpf => "ebpf",
        Datapath::Userspace => "userspace",
    })
}

impl NodeConfig {
    /// The file in which the last snapshot is kept.
    pub(crate) fn snapshot_path(&self) -> PathBuf {
        self.state_dir.join("snapshot")
    }

    /// The file in which the last stream's word on replicas and CAs is kept.
    pub(crate) fn directory_path(&self) -> PathBuf {
        self.state_dir.join("discovery")
    }
}

impl Config {
    /// How this node proves itself at addresses.
    pub(crate) fn proof(&self) -> Proof {
        match (&self.token_file, &self.tls_dir) {
            (Some(file), _) => Proof::Token(file.clone()),
            (None, Some(dir)) => Proof::Certificate(dir.clone()),
            (None, None) => Proof::None,
        }
    }

    /// Where to look for the controller. What streams say is of use only to who proves itself by a token.
    pub(crate) fn sources(&self) -> Sources {
        Sources {
            given: self.controllers.clone(),
            mounted: self.discovery_dir.clone(),
            remembered: self.token_file.as_ref().map(|_| self.node.directory_path()),
            last_resort: self.discovery_vip,
        }
    }
}

impl TryFrom<NodeArgs> for NodeConfig {
    type Error = ConfigError;

    fn try_from(args: NodeArgs) -> Result<Self, ConfigError> {
        if args.node_name.trim().is_empty() {
            return Err(ConfigError::NoName);
        }
        for (flag, value, example) in
            [("--mark-reply", args.mark_reply, 0x0010_0000), ("--mark-own", args.mark_own, 0x0020_0000)]
        {
            if value == 0 || value & FOREIGN_MARKS != 0 {
                return Err(ConfigError::Mark { flag, value, example });
            }
        }
        if args.mark_reply & args.mark_own != 0 {
            return Err(ConfigError::MarksOverlap { reply: args.mark_reply, own: args.mark_own });
        }
        match args.route_table {
            0 => return Err(ConfigError::Zero { flag: "--route-table", hint: "a table that nothing else uses" }),
            253..=255 => return Err(ConfigError::RouteTable(args.route_table)),
            _ => {}
        }
        if args.proxy_port == 0 {
            return Err(ConfigError::Zero { flag: "--proxy-port", hint: "a port that no program on this node uses" });
        }
        let filter = EnvFilter::try_new(&args.log_level);
        filter.map_err(|e| ConfigError::Filter { filter: args.log_level.clone(), reason: e.to_string() })?;
        Ok(Self {
            name: args.node_name,
            cgroup: args.cgroup,
            bpffs: args.bpffs,
            admin_socket: args.admin_socket.unwrap_or_else(|| args.state_dir.join("admin.sock")),
            state_dir: args.state_dir,
            mark_reply: args.mark_reply,
            mark_own: args.mark_own,
            route_table: args.route_table,
            proxy_port: args.proxy_port,
            log_format: args.log_format,
            log_level: args.log_level,
        })
    }
}

impl TryFrom<RunArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: RunArgs) -> Result<Self, ConfigError> {
        let node = NodeConfig::try_from(args.node)?;
        let controllers = args.controller.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>, _>>()?;
        if controllers.len() > MAX_CONTROLLERS {
            return Err(ConfigError::Endpoints);
        }
        if controllers.is_empty() && args.discovery_dir.is_none() {
            return Err(ConfigError::NoController);
        }
        if args.tls_dir.is_none() && args.token_file.is_none() {
            let open = controllers.iter().find_map(|e| if let Endpoint::Tcp(a) = e { Some(*a) } else { None });
            if let Some(address) = open {
                return Err(ConfigError::NoTls(address));
            }
        }
        let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        match threads {
            0 => return Err(ConfigError::Zero { flag: "--threads", hint: "at least 1" }),
            1..=MAX_THREADS => {}
            _ => return Err(ConfigError::Threads(threads)),
        }
        Ok(Self {
            node,
            controllers,
            tls_dir: args.tls_dir,
            discovery_dir: args.discovery_dir,
            token_file: args.token_file,
            discovery_vip: args.discovery_vip.as_deref().and_then(vip).transpose()?,
            exit_without_controller: args.exit_without_controller,
            datapath: args.datapath,
            admin: args.admin,
            health: args.health,
            compat_metrics: args.compat_metrics,
            node_addresses: args.node_addresses,
            threads,
        })
    }
}

/// The kubelet leaves `$(NAME)` where it knows no NAME, and puts no brackets around IPv6.
fn vip(text: &str) -> Option<Result<SocketAddr, ConfigError>> {
    if text.starts_with("$(") {
        return None;
    }
    let bare = || {
        let (ip, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    Some(text.parse().ok().or_else(bare).ok_or_else(|| ConfigError::DiscoveryVip(text.to_owned())))
}

fn endpoint(text: &str) -> Result<Endpoint, ConfigError> {
    let wrong = || ConfigError::Endpoint(text.to_owned());
    match text.strip_prefix("unix:") {
        Some(path) if Path::new(path).is_absolute() || !path.is_empty() => Ok(Endpoint::Unix(path.into())),
        Some(_) => Err(wrong()),
        None => text.parse().map(Endpoint::Tcp).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, tests::parse};

    fn config(extra: &[&str]) -> Result<Config, ConfigError> {
        let Command::Run(run) = parse(extra).unwrap().command else { panic!("not run") };
        Config::try_from(*run)
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_flag() {
        for (extra, flag) in [
            (&["--controller=unix:/x", "--mark-own=0x80"][..], "--mark-own"),
            (&["--controller=unix:/x", "--mark-own=0"], "--mark-own"),
            (&["--controller=unix:/x", "--mark-own=0x100000"], "--mark-reply"),
            (&["--controller=unix:/x", "--proxy-port=0"], "--proxy-port"),
            (&["--controller=unix:/x", "--route-table=254"], "--route-table"),
            (&["--controller=unix:/x", "--threads=0"], "--threads"),
            (&["--controller=unix:/x", "--log-level=a=b=c"], "--log-level"),
            (&["--controller=unix:"], "--controller"),
            (&["--discovery-dir=/d", "--token-file=/t", "--discovery-vip=controller:15010"], "--discovery-vip"),
            (&["--controller=somewhere"], "--controller"),
            (&["--controller=10.0.0.1:15010"], "--tls-dir"),
            (&[], "--controller"),
            (&["--controller=unix:/x", "--node-name="], "--node-name"),
        ] {
            let parsed = parse(extra);
            let Ok(cli) = parsed else { continue };
            let Command::Run(run) = cli.command else { panic!("not run") };
            let error = Config::try_from(*run).expect_err(flag).to_string();
            assert!(error.contains(flag) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_token_and_a_mounted_folder_are_enough() {
        let config = config(&["--discovery-dir=/d", "--token-file=/t", "--discovery-vip=10.96.0.5:15010"]).unwrap();
        assert!(matches!(config.proof(), Proof::Token(_)));
        let sources = config.sources();
        assert_eq!(sources.remembered.as_deref(), Some(Path::new("/s/discovery")));
        assert!(sources.given.is_empty() && sources.mounted.is_some() && sources.last_resort.is_some());
        let unexpanded = "--discovery-vip=$(SHEAVE_DISCOVERY_SERVICE_HOST):15010";
        let config = self::config(&["--discovery-dir=/d", "--token-file=/t", unexpanded]).unwrap();
        assert!(config.sources().last_resort.is_none(), "the Service was not there yet");
        assert_eq!(vip("fd00:96::7:15010").unwrap().unwrap(), "[fd00:96::7]:15010".parse().unwrap());
        let by_certificate = self::config(&["--controller=10.0.0.1:15010", "--tls-dir=/t"]).unwrap();
        assert!(matches!(by_certificate.proof(), Proof::Certificate(_)));
        assert!(by_certificate.sources().remembered.is_none());
    }

    #[test]
    fn the_admin_socket_lies_in_the_state_folder() {
        let config = config(&["--controller=unix:/x,10.0.0.1:15010", "--tls-dir=/t"]).unwrap();
        assert_eq!(config.node.admin_socket, Path::new("/s/admin.sock"));
        assert_eq!(config.controllers.len(), 2);
        let dumped = serde_json::to_value(&config).unwrap();
        assert_eq!(dumped["datapath"], "auto");
        assert_eq!(dumped["name"], "n1");
    }
}
