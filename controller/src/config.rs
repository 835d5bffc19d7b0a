//! The command line, validated: what is in here can be tried.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;

use crate::args::{LogFormat, RunArgs};

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
    Kube { kubeconfig: Option<PathBuf>, lease_namespace: Option<String> },
    /// A folder of YAML, and what stands in for an API server behind it.
    Dir { path: PathBuf, service_cidrs: Vec<IpNet>, node_ports: RangeInclusive<u16> },
}

/// Discovery over TLS.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListenConfig {
    pub(crate) address: SocketAddr,
    pub(crate) tls_dir: PathBuf,
}

impl Config {
    /// Validates the command line.
    pub(crate) fn new(args: Box<RunArgs>) -> Result<Self, ConfigError> {
        let source = source(&args)?;
        let listen = match (args.listen, args.tls_dir) {
            (Some(address), Some(tls_dir)) => Some(ListenConfig { address, tls_dir }),
            (Some(_), None) => return Err(ConfigError("--listen needs --tls-dir; make one with `init`".into())),
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
    fn what_cannot_work_is_said_with_the_flag() {
        for (flags, word) in [
            (&["--source", "dir:", "--socket", "s"][..], "--source"),
            (&["--source", "etcd", "--socket", "s"], "--source"),
            (&["--source", "kube"], "--listen or --socket"),
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
