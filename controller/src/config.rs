//! The command line, validated: what is in here can be tried.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;

use crate::args::{LogFormat, RunArgs, TrustMode};

/// ClusterIPs come from here where nothing else is said: kubeadm's IPv4 default and a ULA beside it.
const DEFAULT_SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// A configuration that can't work. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(pub(crate) String);

/// What to run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Config {
    pub(crate) source: SourceConfig,
    pub(crate) state_dir: PathBuf,
    pub(crate) listen: Option<ListenConfig>,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) admin: SocketAddr,
    pub(crate) admin_socket: PathBuf,
    pub(crate) log_json: bool,
    pub(crate) log_level: String,
    pub(crate) replica_name: String,
}

/// Where objects come from.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SourceConfig {
    /// An API server.
    Kube { kubeconfig: Option<PathBuf>, api_server: Option<String>, lease_namespace: Option<String> },
    /// A folder of YAML, and what stands in for an API server behind it.
    Dir { path: PathBuf, service_cidrs: Vec<IpNet>, node_ports: RangeInclusive<u16> },
}

/// Discovery over TLS.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListenConfig {
    pub(crate) address: SocketAddr,
    pub(crate) trust: TrustConfig,
}

/// How both sides of a TLS connection know each other.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TrustConfig {
    /// By certificates of one CA, in this folder.
    Files { tls_dir: PathBuf },
    /// By a CA that replicas share at the API server, and by tokens. Proxies reach this replica at `advertise`.
    Kube { advertise: SocketAddr },
}

impl Config {
    /// Validates the command line.
    pub(crate) fn new(args: Box<RunArgs>) -> Result<Self, ConfigError> {
        let source = source(&args)?;
        let trust = trust(&args)?;
        let listen = match (args.listen, trust) {
            (Some(address), Some(trust)) => Some(ListenConfig { address, trust }),
            (Some(_), None) => {
                return Err(ConfigError("--listen needs --tls-dir (see `init`), or --trust kube".into()));
            }
            (None, _) => None,
        };
        if listen.is_none() && args.socket.is_none() {
            return Err(ConfigError("no proxy could subscribe; give --listen or --socket".into()));
        }
        let replica_name = args.replica_name.unwrap_or_else(default_replica_name);
        if replica_name.is_empty() {
            return Err(ConfigError("--replica-name is empty; leave it out or give a name".into()));
        }
        let admin_socket = args.admin_socket.unwrap_or_else(|| args.state_dir.join("admin.sock"));
        Ok(Self {
            source,
            state_dir: args.state_dir,
            listen,
            socket: args.socket,
            admin: args.admin,
            admin_socket,
            log_json: args.log_format == LogFormat::Json,
            log_level: args.log_level,
            replica_name,
        })
    }
}

fn source(args: &RunArgs) -> Result<SourceConfig, ConfigError> {
    if args.source == "kube" {
        return Ok(SourceConfig::Kube {
            kubeconfig: args.kubeconfig.clone(),
            api_server: args.api_server.as_deref().map(api_server).transpose()?,
            lease_namespace: args.lease_namespace.clone(),
        });
    }
    let path = args.source.strip_prefix("dir:").filter(|path| !path.is_empty());
    let Some(path) = path else {
        return Err(ConfigError(format!("--source {} is unknown; give `kube` or `dir:PATH`", args.source)));
    };
    let node_ports = node_ports(&args.node_port_range)?;
    Ok(SourceConfig::Dir { path: path.into(), service_cidrs: service_cidrs(&args.service_cidr)?, node_ports })
}

/// A host and a port, which become the API server's URL.
fn api_server(text: &str) -> Result<String, ConfigError> {
    let whole = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && bracketed && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if whole {
        return Ok(text.to_owned());
    }
    Err(ConfigError(format!("--api-server {text} is no HOST:PORT; write it as 10.0.0.1:6443 or [fd00::1]:6443")))
}

fn trust(args: &RunArgs) -> Result<Option<TrustConfig>, ConfigError> {
    if args.trust == TrustMode::Files {
        return match args.advertise {
            Some(_) => Err(ConfigError("--advertise means nothing without --trust kube; leave it out".into())),
            None => Ok(args.tls_dir.clone().map(|tls_dir| TrustConfig::Files { tls_dir })),
        };
    }
    if args.source != "kube" {
        return Err(ConfigError("--trust kube needs --source kube; for a folder use --tls-dir or --socket".into()));
    }
    if args.tls_dir.is_some() {
        return Err(ConfigError("--trust kube makes its own certificates; leave out --tls-dir".into()));
    }
    let Some(listen) = args.listen else {
        return Err(ConfigError("--trust kube needs --listen, such as 0.0.0.0:15010".into()));
    };
    let advertise = args.advertise.unwrap_or(listen);
    if advertise.ip().is_unspecified() || advertise.port() == 0 {
        return Err(ConfigError(format!(
            "proxies can't reach {advertise}; give --advertise with this replica's own address and port"
        )));
    }
    Ok(Some(TrustConfig::Kube { advertise }))
}

fn service_cidrs(given: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    let parse = |text: &str| {
        let net = text.trim().parse::<IpNet>().map_err(|error| {
            ConfigError(format!("--service-cidr {text}: {error}; write it as 10.96.0.0/16 or fd00:10:96::/112"))
        })?;
        Ok(net.trunc())
    };
    if given.is_empty() {
        return DEFAULT_SERVICE_CIDRS.into_iter().map(parse).collect();
    }
    let nets = given.iter().map(|text| parse(text)).collect::<Result<Vec<IpNet>, _>>()?;
    for v4 in [true, false] {
        if nets.iter().filter(|net| net.addr().is_ipv4() == v4).count() > 1 {
            return Err(ConfigError("--service-cidr has two of one family; give at most one of each".into()));
        }
    }
    Ok(nets)
}

fn node_ports(text: &str) -> Result<RangeInclusive<u16>, ConfigError> {
    let wrong = || ConfigError(format!("--node-port-range {text} is no range of ports; write it as 30000-32767"));
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first: u16 = first.trim().parse().map_err(|_| wrong())?;
    let last: u16 = last.trim().parse().map_err(|_| wrong())?;
    if first == 0 || first > last { Err(wrong()) } else { Ok(first..=last) }
}

/// The host's name, and a random part, because two replicas may share a host.
fn default_replica_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let random: u32 = rand::random();
    format!("{}-{random:08x}", if host.is_empty() { "sheave-controller" } else { host })
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    /// A validated command line.
    pub(crate) fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let all = ["c", "run", "--state-dir", "state"].iter().chain(flags);
        let Command::Run(args) = Args::try_parse_from(all).expect("the flags exist").command else {
            panic!("run was asked for")
        };
        Config::new(args)
    }

    #[test]
    fn a_folder_has_ranges_to_assign_from() {
        let config = config(&["--source", "dir:/tmp/x", "--socket", "s", "--service-cidr", "10.1.2.3/16"]).unwrap();
        let SourceConfig::Dir { service_cidrs, node_ports, .. } = config.source else {
            panic!("a folder was asked for")
        };
        assert_eq!(service_cidrs, ["10.1.0.0/16".parse::<IpNet>().unwrap()]);
        assert_eq!(node_ports, 30_000..=32_767);
    }

    #[test]
    fn a_replica_advertises_what_it_listens_on_unless_it_is_told_otherwise() {
        let advertised = |flags: &[&str]| {
            let all = ["--source", "kube", "--trust", "kube", "--api-server", "[fd00::1]:6443"].iter().chain(flags);
            let config = config(&all.copied().collect::<Vec<_>>()).unwrap();
            match config.listen.unwrap().trust {
                TrustConfig::Kube { advertise } => advertise.to_string(),
                TrustConfig::Files { .. } => panic!("trust by the API server was asked for"),
            }
        };
        assert_eq!(advertised(&["--listen", "10.0.0.1:15010"]), "10.0.0.1:15010");
        assert_eq!(advertised(&["--listen", "0.0.0.0:1", "--advertise", "10.0.0.2:15010"]), "10.0.0.2:15010");
    }

    #[test]
    fn what_cannot_work_is_said_with_the_flag() {
        for (flags, word) in [
            (&["--source", "dir:", "--socket", "s"][..], "--source"),
            (&["--source", "etcd", "--socket", "s"], "--source"),
            (&["--source", "kube"], "--listen or --socket"),
            (&["--source", "kube", "--listen", "0.0.0.0:1"], "--tls-dir"),
            (&["--source", "kube", "--trust", "kube", "--socket", "s"], "--listen"),
            (&["--source", "kube", "--trust", "kube", "--listen", "[::]:1"], "--advertise"),
            (&["--source", "kube", "--trust", "kube", "--listen", "10.0.0.1:1", "--tls-dir", "t"], "--tls-dir"),
            (&["--source", "dir:x", "--trust", "kube", "--listen", "10.0.0.1:1"], "--source"),
            (&["--source", "kube", "--socket", "s", "--advertise", "10.0.0.1:1"], "--advertise"),
            (&["--source", "kube", "--socket", "s", "--api-server", "fd00::1:6443"], "--api-server"),
            (&["--source", "kube", "--socket", "s", "--api-server", "https://x:1"], "--api-server"),
            (&["--source", "dir:x", "--socket", "s", "--service-cidr", "10.0.0.0/33"], "--service-cidr"),
            (&["--source", "dir:x", "--socket", "s", "--service-cidr", "10.0.0.0/16,10.2.0.0/16"], "--service-cidr"),
            (&["--source", "dir:x", "--socket", "s", "--node-port-range", "9-3"], "--node-port-range"),
            (&["--source", "dir:x", "--socket", "s", "--node-port-range", "0-70000"], "--node-port-range"),
        ] {
            let error = config(flags).expect_err("it can't work").to_string();
            assert!(error.contains(word), "{error} names {word}");
        }
    }
}
