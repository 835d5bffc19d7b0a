//! A run: the program puts itself into namespaces of its own, and everything it starts ends with it.
//!
//! Three processes of the same program, one below the other: the *supervisor* in the machine's own namespaces, which only
//! waits and cleans up; *init*, process 1 of a new process namespace, which only reaps, and whose end the kernel follows
//! by killing everything in there; and the *runner*, which returns from [`enter`] and does the work. The supervisor's
//! death, even by SIGKILL, kills init. What a killed supervisor could not remove (cgroups, its folder) the next start does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, io};

use anyhow::{Context, Result, bail};

use crate::sys::{self, Mount};
use crate::{cgroup, netns, testpod};

const STAGE: &str = "SHEAVE_RUN_STAGE";
const ID: &str = "SHEAVE_RUN_ID";
/// Set where a run was asked to leave its folder (its logs) behind.
const KEEP: &str = "SHEAVE_KEEP";

/// Who this run is, and where its things are.
#[derive(Clone, Debug)]
pub struct Run {
    /// Names everything that this run leaves outside its namespaces.
    pub id: String,
    /// Sockets, state folders and logs; removed at the end unless `SHEAVE_KEEP` is set.
    pub folder: PathBuf,
    /// The run's own cgroup2 subtree.
    pub cgroup: PathBuf,
}

impl Run {
    fn new(id: &str) -> Result<Self> {
        let folder = env::temp_dir().join(format!("sheave-{id}"));
        Ok(Self { id: id.to_owned(), folder, cgroup: cgroup::mount_point()?.join(format!("sheave-{id}")) })
    }

    /// Where logs of the programs go.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    fn remove(&self) -> Result<()> {
        cgroup::remove(&self.cgroup)?;
        if env::var_os(KEEP).is_none() {
            remove_folder(&self.folder).with_context(|| format!("remove {}", self.folder.display()))?;
        }
        Ok(())
    }
}

/// Call this first in `main`: returns in the runner only. The other stages (and test pods, which are this program too) run
/// to their end in here and exit with the runner's code.
pub fn enter() -> Result<Run> {
    testpod::run_if_asked();
    match env::var(STAGE).as_deref() {
        Ok("init") => {
            let code = init()?;
            exit(code)
        }
        Ok("runner") => Run::new(&env::var(ID).context("run id")?),
        _ => {
            let code = supervise()?;
            exit(code)
        }
    }
}

fn supervise() -> Result<i32> {
    if !sys::is_root() {
        bail!("network namespaces need root; run this as root (sudo -E make ...)");
    }
    remove_leftovers()?;
    let id = format!("{:08x}", rand::random::<u32>());
    let run = Run::new(&id)?;
    let lock = lock_path(&id);
    fs::create_dir_all(lock_folder())?;
    let held = File::create_new(&lock).with_context(|| format!("{}", lock.display()))?;
    held.lock().context("lock of this run")?;
    cgroup::make(&run.cgroup)?;
    fs::create_dir_all(run.logs()).context("folder of this run")?;

    sys::unshare_pids().context("new process namespace")?;
    let mut command = Command::new(env::current_exe()?);
    command.args(env::args_os().skip(1)).env(STAGE, "init").env(ID, &id);
    let child = sys::isolate(&mut command).spawn().context("start init")?;
    sys::end_child_on_signals(child.id());
    let code = loop {
        match sys::wait_any() {
            Ok((pid, code)) if pid == child.id() => break code,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("wait for init"),
        }
    };
    run.remove()?;
    fs::remove_file(&lock).context("lock of this run")?;
    Ok(code)
}

/// Process 1 of the new namespace: private mounts, then one child; it ends when that ends, and all others with it.
fn init() -> Result<i32> {
    sys::mount(Mount::Private, Path::new("/")).context("private mounts")?;
    sys::mount(Mount::New("proc"), Path::new("/proc")).context("/proc")?;
    sys::mount(Mount::New("tmpfs"), Path::new("/run")).context("/run")?;
    fs::create_dir_all(netns::FOLDER).context(netns::FOLDER)?;
    sys::raise_descriptor_limit().context("descriptor limit")?;
    let runner = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(STAGE, "runner")
        .spawn()
        .context("start runner")?;
    loop {
        match sys::wait_any() {
            Ok((pid, code)) if pid == runner.id() => return Ok(code),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("wait for runner"),
        }
    }
}

fn lock_folder() -> PathBuf {
    env::temp_dir().join("sheave-runs")
}

fn lock_path(id: &str) -> PathBuf {
    lock_folder().join(format!("{id}.lock"))
}

/// Removes what killed runs left: those whose lock nobody holds any more.
pub fn remove_leftovers() -> Result<()> {
    let Ok(locks) = fs::read_dir(lock_folder()) else { return Ok(()) };
    for path in locks.filter_map(|entry| Some(entry.ok()?.path())) {
        let Some(id) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue; // still running, or just being removed by a start beside this one
        }
        Run::new(id)?.remove()?;
        let _ = fs::remove_file(&path); // a start beside this one may have been quicker
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
