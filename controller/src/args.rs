//! The command line. Every flag can also be given as an environment variable `SHEAVE_...`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Watches Services and Pods and serves what proxies need of them.
#[derive(Debug, Parser)]
#[command(name = "sheave-controller", version, about)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs until SIGTERM
    Run(Box<RunArgs>),
    /// Makes a CA and certificates for the controller and its nodes, for where no tokens are projected
    Init(InitArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Where objects come from: `kube`, or `dir:PATH` for a folder of YAML
    #[arg(long, env = "SHEAVE_SOURCE")]
    pub(crate) source: String,
    /// Kubeconfig for `--source kube`; without it the usual places, then the pod's own account
    #[arg(long, env = "SHEAVE_KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Where the API server is reached in place of what the kubeconfig or the pod's environment says: never by a Service
    #[arg(long, env = "SHEAVE_API_SERVER", value_name = "HOST:PORT")]
    pub(crate) api_server: Option<String>,
    /// How proxies and controllers trust each other on `--listen`: `kube`, by tokens and a CA kept at the API server, or
    /// `files`, by certificates in `--tls-dir`
    #[arg(long, env = "SHEAVE_TRUST", value_enum, default_value = "files")]
    pub(crate) trust: TrustMode,
    /// Where proxies reach this replica, for `--trust kube`; without it the address of `--listen`
    #[arg(long, env = "SHEAVE_ADVERTISE", value_name = "IP:PORT")]
    pub(crate) advertise: Option<SocketAddr>,
    /// Folder for what must outlive a restart; one controller uses it at a time
    #[arg(long, env = "SHEAVE_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// ClusterIPs are assigned from these; for `--source dir:`
    #[arg(long, env = "SHEAVE_SERVICE_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_cidr: Vec<String>,
    /// NodePorts are assigned from these; for `--source dir:`
    #[arg(long, env = "SHEAVE_NODE_PORT_RANGE", value_name = "FIRST-LAST", default_value = "30000-32767")]
    pub(crate) node_port_range: String,
    /// Serves discovery over TLS here; proxies need a certificate or a token, see `--trust`
    #[arg(long, env = "SHEAVE_LISTEN", value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Folder with ca.crt, controller.crt and controller.key, as `init` makes them
    #[arg(long, env = "SHEAVE_TLS_DIR", value_name = "DIR")]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Serves discovery on a unix socket here (mode 0600), for proxies of the same user
    #[arg(long, env = "SHEAVE_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Serves metrics and health here
    #[arg(long, env = "SHEAVE_ADMIN", value_name = "IP:PORT", default_value = "0.0.0.0:15021")]
    pub(crate) admin: SocketAddr,
    /// Serves metrics, health, /debug and the log level on a unix socket here (mode 0600) [default: STATE-DIR/admin.sock]
    #[arg(long, env = "SHEAVE_ADMIN_SOCKET", value_name = "PATH")]
    pub(crate) admin_socket: Option<PathBuf>,
    /// How log lines look
    #[arg(long, env = "SHEAVE_LOG_FORMAT", value_enum, default_value = "human")]
    pub(crate) log_format: LogFormat,
    /// Which log lines are written, such as `info` or `info,sheave_controller=debug`
    #[arg(long, env = "SHEAVE_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub(crate) log_level: String,
    /// Namespace of the Lease that elects who may write; without it the kubeconfig's or the pod's own
    #[arg(long, env = "SHEAVE_LEASE_NAMESPACE", value_name = "NS")]
    pub(crate) lease_namespace: Option<String>,
    /// This replica's name in the Lease; without it the host's name and a random part
    #[arg(long, env = "SHEAVE_REPLICA_NAME", value_name = "NAME")]
    pub(crate) replica_name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Human,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrustMode {
    Files,
    Kube,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Where the files go; a CA that is there is used
    #[arg(long, env = "SHEAVE_DIR")]
    pub(crate) dir: PathBuf,
    /// A node to make a certificate for; can be given again, also in a later run
    #[arg(long, value_name = "NAME", required = true, num_args = 1..)]
    pub(crate) node: Vec<String>,
    /// An address or DNS name at which proxies reach the controller
    #[arg(long, value_name = "IP-or-DNS", num_args = 1..)]
    pub(crate) address: Vec<String>,
}

/// clap's complaint without its usage lines, on one line.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let body = text.split("\n\n").next().unwrap_or_default();
    let line = body.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    format!("{}; see --help", line.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_flag_is_one_line_that_names_it() {
        let error = Args::try_parse_from(["sheave-controller", "run", "--sauce", "kube"]).unwrap_err();
        let line = one_line(&error);
        assert!(line.contains("--sauce") && !line.contains('\n'), "{line}");
        let missing = one_line(&Args::try_parse_from(["sheave-controller", "run", "--source", "kube"]).unwrap_err());
        assert!(missing.contains("--state-dir") && !missing.contains('\n'), "{missing}");
    }

    #[test]
    fn lists_are_split_at_commas() {
        let args = ["c", "run", "--source", "kube", "--state-dir", "s", "--service-cidr", "10.0.0.0/16,fd00::/112"];
        let Command::Run(run) = Args::try_parse_from(args).unwrap().command else { panic!("run was asked for") };
        assert_eq!(run.service_cidr, ["10.0.0.0/16", "fd00::/112"]);
    }
}
