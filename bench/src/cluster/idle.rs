//! What a proxy uses while nothing happens but probes and scrapes by nobody: memory and time of a core, on every node.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::found::Idle;
use super::round::Context;
use crate::usage::Memory;

/// After the start of everything.
const SETTLE: Duration = Duration::from_secs(5);
/// How long is looked.
const SPAN: Duration = Duration::from_secs(60);

/// Measures every node's proxy over the same minute.
pub(super) fn measure(it: &Context) -> Result<Vec<Idle>> {
    it.settled()?;
    thread::sleep(SETTLE);
    let (_, name) = it.arm.daemon_set();
    let nodes = it.api.list("Node", "")?.len();
    let processes = named(name)?;
    ensure!(processes.len() == nodes, "{} processes are called {name}, on {nodes} nodes", processes.len());
    let before = processes.iter().map(|pid| threads(*pid)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    thread::sleep(SPAN);
    processes
        .iter()
        .zip(before)
        .map(|(pid, before)| {
            let ran: u64 = threads(*pid)?.iter().map(|(id, now)| now - before.get(id).unwrap_or(&0)).sum();
            let memory = Memory::of(*pid)?;
            let core = ran as f64 / start.elapsed().as_nanos() as f64 * 100.0;
            Ok(Idle { resident: memory.resident, note: memory.note(), core })
        })
        .collect()
}

/// Processes of this name, as this world's /proc has them.
fn named(name: &str) -> Result<Vec<u32>> {
    let numbers = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // One that ends meanwhile has no name any more.
    let is = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    Ok(numbers.filter(is).collect())
}

/// Nanoseconds on a core of each thread of a process (the first field of schedstat: proc_pid_schedstat in the kernel's
/// Documentation/scheduler/sched-stats.rst). Exact, where utime and stime count ticks.
fn threads(pid: u32) -> Result<BTreeMap<u32, u64>> {
    let folder = format!("/proc/{pid}/task");
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        let entry = entry?;
        // A thread may end between the listing and the look.
        let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok()).context("a thread's number")?;
        all.insert(id, text.split(' ').next().and_then(|field| field.parse().ok()).context("schedstat")?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_every_thread_counts() {
        let pid = std::process::id();
        let sum = || threads(pid).unwrap().values().sum::<u64>();
        let before = sum();
        let spinner = thread::spawn(|| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(300) {
                std::hint::spin_loop();
            }
            thread::sleep(Duration::from_millis(200)); // still there when it is looked at
        });
        thread::sleep(Duration::from_millis(400));
        let ran = sum() - before;
        spinner.join().unwrap();
        assert!(ran > 20_000_000, "{ran} ns, of a thread that spins for 300 ms on a machine that may be loaded");
    }

    #[test]
    fn processes_are_found_by_name() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(named(own.trim_end()).unwrap().contains(&std::process::id()));
        assert!(named("no such program").unwrap().is_empty());
    }
}
