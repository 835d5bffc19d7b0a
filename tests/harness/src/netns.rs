//! Named network namespaces, and running things in them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

use crate::sys::{self, Mount};

/// Where `ip netns` looks, and what this run has a private file system at.
pub const FOLDER: &str = "/run/netns";

/// A network namespace with a name; it ends when the last clone of this is dropped and no process is in it.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    file: File,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let path = Path::new(FOLDER).join(&self.name);
        // Nothing is lost when this fails: the whole folder goes with the run.
        let _ = sys::unmount(&path);
        let _ = fs::remove_file(&path);
    }
}

impl Netns {
    /// A new namespace, with `lo` up and IPv6 addresses usable at once.
    pub fn create(name: &str) -> Result<Self> {
        let path = target(name)?;
        let place = path.clone();
        on_thread(move || {
            sys::unshare_network().context("unshare")?;
            sys::mount(Mount::Bind(Path::new("/proc/thread-self/ns/net")), &place).context("bind")?;
            basics()
        })
        .with_context(|| format!("network namespace {name}"))?;
        Self::open(name, &path)
    }

    /// Gives the namespace that this process is in a name.
    pub fn current(name: &str) -> Result<Self> {
        let path = target(name)?;
        sys::mount(Mount::Bind(Path::new("/proc/self/ns/net")), &path).with_context(|| format!("namespace {name}"))?;
        basics()?;
        Self::open(name, &path)
    }

    fn open(name: &str, path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { inner: Arc::new(Inner { name: name.to_owned(), file }) })
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A descriptor of it, to start a process in it.
    pub fn descriptor(&self) -> Result<File> {
        self.inner.file.try_clone().context("namespace descriptor")
    }

    /// Runs `work` on a thread that is in this namespace.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let file = self.descriptor()?;
        on_thread(move || {
            sys::enter_network(&file).context("enter namespace")?;
            work()
        })
    }

    /// Runs lines of `ip` commands in this namespace, all in one go.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        let script = lines.join("\n");
        let name = self.inner.name.clone();
        self.run(move || ip_batch(&script)).with_context(|| format!("in namespace {name}"))
    }

    /// Sets kernel settings (paths below /proc/sys) in this namespace.
    pub fn settings(&self, settings: &'static [(&'static str, &'static str)]) -> Result<()> {
        self.run(move || write_settings(settings))
    }

    /// Runs a program in this namespace to its end and returns what it printed; its failure is an error with its words.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let said = format!("{program} {}", arguments.join(" "));
        let output = self.run(move || command.output().context("start"))?;
        if !output.status.success() {
            bail!("{said}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn target(name: &str) -> Result<PathBuf> {
    let path = Path::new(FOLDER).join(name);
    File::create_new(&path).with_context(|| format!("{} (a name taken twice?)", path.display()))?;
    Ok(path)
}

/// Runs `work` on a thread of its own, which may change namespace and ends with it.
fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    std::thread::spawn(work).join().map_err(|_| anyhow!("a thread of the harness panicked"))?
}

fn basics() -> Result<()> {
    // Duplicate address detection would keep each new IPv6 address unusable for a second or two.
    write_settings(&[
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/dad_transmits", "0"),
        ("net/ipv6/conf/all/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv6/conf/all/accept_redirects", "0"),
    ])?;
    ip_batch("link set lo up")
}

fn write_settings(settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))?;
    }
    Ok(())
}

fn ip_batch(script: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip (Debian: iproute2)")?;
    child.stdin.take().context("ip's input")?.write_all(script.as_bytes()).context("write to ip")?;
    let output = child.wait_with_output().context("ip")?;
    if !output.status.success() {
        bail!("ip -batch: {}\n{script}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
