//! Data paths side by side: each in a run of its own, as two processes; their lines come as they are ready.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;

use anyhow::{Context as _, Result, ensure};
use sheave_harness::cluster::DataPath;
use sheave_harness::sys;

/// Set in the processes that run one data path each.
const PART: &str = "SHEAVE_E2E_PART";

/// Whether this process is one of several and leaves the summary to the one that started it.
pub(crate) fn is_part() -> bool {
    std::env::var_os(PART).is_some()
}

/// Runs each path in a process of its own, with this one's other arguments; the last line is the summary of all.
pub(crate) fn run(paths: &[DataPath]) -> Result<ExitCode> {
    let (sender, lines) = mpsc::channel();
    let mut children = Vec::new();
    for path in paths {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1)).args(["--paths", path.name()]).env(PART, path.name());
        let mut child = sys::end_with_parent(command.stdout(Stdio::piped())).spawn().context("start a part")?;
        let output = child.stdout.take().context("output of a part")?;
        let sender = sender.clone();
        let name = path.name();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send((name, line)); // nobody listens any more: this process is ending
            }
        });
        children.push(child);
    }
    drop(sender);
    let (mut passed, mut failed, mut summaries) = (0, 0, 0);
    let mut names = Vec::new();
    for (path, line) in lines {
        if let Some((passes, failures)) = summary(&line) {
            (passed, failed, summaries) = (passed + passes, failed + failures, summaries + 1);
        } else if line.starts_with("failed: ") {
            names.push(line);
        } else if line.contains(" ... ") {
            println!("{line}");
        } else {
            println!("{path}| {line}"); // what belongs to a failure, told apart from the other path's lines
        }
    }
    let mut whole = true;
    for mut child in children {
        whole &= child.wait()?.success();
    }
    names.iter().for_each(|line| println!("{line}"));
    println!("{passed} passed, {failed} failed");
    ensure!(summaries == paths.len(), "a part ended before its summary");
    Ok(if whole && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes `N passed, M failed` apart.
fn summary(line: &str) -> Option<(u32, u32)> {
    let (passed, rest) = line.split_once(" passed, ")?;
    Some((passed.parse().ok()?, rest.strip_suffix(" failed")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_summary_is_taken_for_one() {
        assert_eq!(summary("12 passed, 3 failed"), Some((12, 3)));
        assert_eq!(summary("a case x ebpf x kube ... ok (1.0 s)"), None);
        assert_eq!(summary("failed: 1 passed, x failed"), None);
    }
}
