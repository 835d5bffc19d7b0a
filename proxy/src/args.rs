//! The command line: flags and their environment variables, nothing decided yet (see `config`).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Forwards the Services of a Kubernetes cluster on one node.
#[derive(Debug, Parser)]
#[command(name = "sheave-proxy", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve this node until SIGTERM; what is in the kernel then stays.
    Run(Box<RunArgs>),
    /// Remove everything of ours from this node's kernel: programs, pins, rules and routes.
    Clean(NodeArgs),
}

/// Which node this is and what of it is ours to touch.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// metadata.name of this node.
    #[arg(long, env = "SHEAVE_NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: String,
    /// The cgroup2 folder that holds all of this node's processes: programs attach there.
    #[arg(long, env = "SHEAVE_CGROUP", value_name = "DIR")]
    pub(crate) cgroup: PathBuf,
    /// The BPF file system in which programs and maps are pinned.
    #[arg(long, env = "SHEAVE_BPFFS", value_name = "DIR")]
    pub(crate) bpffs: PathBuf,
    /// A folder of this node's own: lock, snapshot, admin socket.
    #[arg(long, env = "SHEAVE_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Where /debug and the log level are served [default: STATE-DIR/admin.sock].
    #[arg(long, env = "SHEAVE_ADMIN_SOCKET", value_name = "PATH")]
    pub(crate) admin_socket: Option<PathBuf>,
    /// Mark (one or more bits) of packets that go to our listeners.
    #[arg(long, env = "SHEAVE_MARK_REPLY", value_name = "0x..", default_value = "0x00100000", value_parser = mark)]
    pub(crate) mark_reply: u32,
    /// Mark (one or more bits) of our own sockets.
    #[arg(long, env = "SHEAVE_MARK_OWN", value_name = "0x..", default_value = "0x00200000", value_parser = mark)]
    pub(crate) mark_own: u32,
    /// Routing table that leads marked packets to this machine.
    #[arg(long, env = "SHEAVE_ROUTE_TABLE", value_name = "N", default_value_t = 15001)]
    pub(crate) route_table: u32,
    /// Port of the transparent listeners, on 127.0.0.1 and ::1.
    #[arg(long, env = "SHEAVE_PROXY_PORT", value_name = "PORT", default_value_t = 15001)]
    pub(crate) proxy_port: u16,
    /// How log lines look.
    #[arg(long, env = "SHEAVE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
    /// Which log lines are written, e.g. info or sheave_proxy::discovery=debug,info.
    #[arg(long, env = "SHEAVE_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub(crate) log_level: String,
}

/// How to serve.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Replicas of the controller, tried in turn: unix:PATH or IP:PORT.
    #[arg(long, env = "SHEAVE_CONTROLLER", value_name = "ENDPOINT", value_delimiter = ',')]
    pub(crate) controller: Vec<String>,
    /// Folder with ca.crt, tls.crt and tls.key, for IP:PORT endpoints.
    #[arg(long, env = "SHEAVE_TLS_DIR", value_name = "DIR", conflicts_with = "token_file")]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Folder with `controllers` (one IP:PORT to a line) and `ca.crt`, as ConfigMap sheave-discovery is mounted; both may
    /// come and change later.
    #[arg(long, env = "SHEAVE_DISCOVERY_DIR", value_name = "DIR", requires = "token_file")]
    pub(crate) discovery_dir: Option<PathBuf>,
    /// ServiceAccount token that proves which node this is, read anew for each stream.
    #[arg(long, env = "SHEAVE_TOKEN_FILE", value_name = "FILE", requires = "discovery_dir")]
    pub(crate) token_file: Option<PathBuf>,
    /// Address of the controllers' own Service, for when no replica's address is right; a `$(...)` that the kubelet had nothing
    /// for, because the Service was not there when the pod started, is none.
    #[arg(long, env = "SHEAVE_DISCOVERY_VIP", value_name = "IP:PORT", requires = "token_file")]
    pub(crate) discovery_vip: Option<String>,
    /// Ends the program when it has nothing to serve and no replica (but for --discovery-vip), or no CA, was known for so long:
    /// at a start a kubelet renews a mounted ConfigMap at once, otherwise about once a minute.
    #[arg(long, env = "SHEAVE_EXIT_WITHOUT_CONTROLLER", value_name = "SECONDS", requires = "discovery_dir")]
    pub(crate) exit_without_controller: Option<u64>,
    /// Which data path forwards.
    #[arg(long, env = "SHEAVE_DATAPATH", value_enum, default_value_t = Datapath::Auto)]
    pub(crate) datapath: Datapath,
    /// Where metrics and health are served.
    #[arg(long, env = "SHEAVE_ADMIN", value_name = "IP:PORT", default_value = "0.0.0.0:15020")]
    pub(crate) admin: SocketAddr,
    /// Where health alone is served, as kube-proxy does.
    #[arg(long, env = "SHEAVE_HEALTH", value_name = "IP:PORT", default_value = "0.0.0.0:10256")]
    pub(crate) health: SocketAddr,
    /// Shows kube-proxy's well-known metrics (kubeproxy_...) too, as far as they mean something here.
    #[arg(long, env = "SHEAVE_COMPAT_METRICS")]
    pub(crate) compat_metrics: bool,
    /// Addresses on which NodePorts answer [default: the Node's own].
    #[arg(long, env = "SHEAVE_NODE_ADDRESSES", value_name = "IP", value_delimiter = ',')]
    pub(crate) node_addresses: Vec<IpAddr>,
    /// Threads that forward [default: one for each core].
    #[arg(long, env = "SHEAVE_THREADS", value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// Which data path forwards connections of clients on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Datapath {
    /// eBPF where this machine can, userspace otherwise.
    Auto,
    /// The socket hooks, with userspace beneath; fails where this machine can't.
    Ebpf,
    /// Userspace alone: no program is attached.
    Userspace,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For eyes.
    Human,
    /// One JSON object per line.
    Json,
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "not a 32-bit number such as 0x00100000".to_owned())
}

/// clap's complaint on one line: what is wrong, and where help is.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let complaint = text.split("\n\n").next().unwrap_or_default();
    let words = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}; see sheave-proxy --help", words.trim_start_matches("error: "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parse(extra: &[&str]) -> Result<Cli, clap::Error> {
        let node = ["sheave-proxy", "run", "--node-name=n1", "--cgroup=/c", "--bpffs=/b", "--state-dir=/s"];
        Cli::try_parse_from(node.iter().chain(extra))
    }

    #[test]
    fn a_wrong_flag_is_told_on_one_line() {
        for (extra, expected) in [
            (&["--controller=unix:/x", "--frobnicate"][..], "--frobnicate"),
            (&["--discovery-dir=/d"][..], "--token-file"),
            (&["--token-file=/t"][..], "--discovery-dir"),
            (&["--discovery-dir=/d", "--token-file=/t", "--tls-dir=/x"][..], "--tls-dir"),
            (&["--controller=unix:/x", "--mark-own=ten"][..], "not a 32-bit number"),
            (&["--controller=unix:/x", "--datapath=magic"][..], "magic"),
        ] {
            let line = one_line(&parse(extra).unwrap_err());
            assert!(line.contains(expected) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn marks_are_read_in_hexadecimal_and_endpoints_are_split() {
        let cli = parse(&["--controller=unix:/x,10.0.0.1:15010", "--mark-own=0x40000000"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run: {:?}", cli.command) };
        assert_eq!(run.controller, ["unix:/x", "10.0.0.1:15010"]);
        assert_eq!((run.node.mark_own, run.node.mark_reply), (0x4000_0000, 0x0010_0000));
    }
}
