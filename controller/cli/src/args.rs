//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Shows what Sheave's controllers and proxies do, and finds what is in their way.
#[derive(Debug, Parser)]
#[command(
    name = "sheave",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 nothing is wrong, 1 something is, 2 wrong flags, 3 nobody could be asked."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Whom to ask, and how to show it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// Kubeconfig; without it the usual places: KUBECONFIG, the home folder, a pod's own account
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Where Sheave is installed
    #[arg(long, short, global = true, value_name = "NS", default_value = "sheave-system")]
    pub(crate) namespace: String,
    /// Controllers to ask, IP:PORT or unix:PATH; without it every controller's pod, by a port-forward
    #[arg(long, global = true, value_name = "ENDPOINT", value_delimiter = ',', value_parser = endpoint)]
    pub(crate) controller: Vec<Endpoint>,
    /// Folder with ca.crt, tls.crt and tls.key of an operator, as `sheave-controller init` makes it
    #[arg(long, global = true, value_name = "DIR", conflicts_with_all = ["token_file", "ca_file"])]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Token for audience sheave-cli; without it one is asked for ServiceAccount sheave-cli
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// CA that signs for controllers; without it the one in ConfigMap sheave-discovery
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Ask one proxy alone, by its admin socket on this machine, where no controller answers
    #[arg(long, global = true, value_name = "PATH", conflicts_with_all = ["controller", "tls_dir", "token_file", "ca_file"])]
    pub(crate) socket: Option<PathBuf>,
    /// How to show it
    #[arg(long, short, global = true, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// How long one answer may take
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) timeout: u64,
}

/// How to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns
    Table,
    /// The same with more of them
    Wide,
    /// One JSON document, with all there is
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Controllers and nodes: data path and why, what is programmed, how full maps are, errors
    Status,
    /// Services with their frontends and endpoints; of one Service, on each node
    Services(ServicesArgs),
    /// What is in the way: of the cluster, or with --node of this machine, before and after an installation
    Check(CheckArgs),
}

/// Which Services.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServicesArgs {
    /// One Service in detail, or `NAMESPACE/` for all of a namespace
    #[arg(value_name = "NAMESPACE/NAME", value_parser = service)]
    pub(crate) service: Option<(String, String)>,
}

/// What to look at.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Look at this machine as a node, as root
    #[arg(long)]
    pub(crate) node: bool,
    /// Where the node's processes are, with --node
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup", requires = "node")]
    pub(crate) cgroup: PathBuf,
    /// The BPF file system, with --node
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", requires = "node")]
    pub(crate) bpffs: PathBuf,
    /// The proxy's own folder, with --node
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sheave", requires = "node")]
    pub(crate) state_dir: PathBuf,
}

/// Where a controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Its unix socket.
    Unix(PathBuf),
    /// Its TLS port.
    Tcp(SocketAddr),
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
        Some(_) => Err("no path follows unix:".to_owned()),
        None => text.parse().map(Endpoint::Tcp).map_err(|_| "write it as 10.0.0.1:15010 or unix:PATH".to_owned()),
    }
}

fn service(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        Some(_) | None => Err("write it as NAMESPACE/NAME".to_owned()),
    }
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
    fn flags_are_taken_before_and_after_the_command() {
        let args =
            Args::try_parse_from(["sheave", "-o", "json", "services", "default/web", "--controller", "10.0.0.1:1"]);
        let args = args.unwrap();
        assert_eq!(args.common.output, Output::Json);
        assert_eq!(args.common.controller, [Endpoint::Tcp("10.0.0.1:1".parse().unwrap())]);
        let Command::Services(wanted) = args.command else { panic!("services was asked for") };
        assert_eq!(wanted.service, Some(("default".to_owned(), "web".to_owned())));
    }

    #[test]
    fn a_wrong_flag_is_one_line_that_names_it() {
        for (flags, word) in [
            (&["status", "--sauce"][..], "--sauce"),
            (&["services", "web"], "NAMESPACE/NAME"),
            (&["status", "--controller", "example:1"], "--controller"),
            (&["status", "--socket", "/x", "--controller", "10.0.0.1:1"], "--socket"),
            (&["check", "--cgroup", "/x"], "--node"),
            (&["status", "--timeout", "0"], "--timeout"),
        ] {
            let error = Args::try_parse_from(["sheave"].iter().chain(flags)).unwrap_err();
            let line = one_line(&error);
            assert!(line.contains(word) && !line.contains('\n'), "{line} names {word}");
        }
    }
}
