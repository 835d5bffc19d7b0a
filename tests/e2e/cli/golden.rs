//! What `sheave` prints, compared with files of tests/golden/cli. What differs from run to run is masked, nothing else.
//!
//! `SHEAVE_WRITE_GOLDEN=1` writes the files instead: look at the difference before it is committed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sheave_harness::process::{Place, program, spawn};
use sheave_harness::wait::until;

use crate::check::SOON;

/// Columns whose values differ from run to run, or between the data paths.
const VOLATILE: [&str; 13] = [
    "REVISION",
    "VIEW AGE",
    "AGE",
    "FULLEST MAP",
    "DATAPATH",
    "WHY",
    "KERNEL",
    "REPLICA",
    "SOURCE",
    "CONTROLLER",
    "HASH",
    "LEADS",
    "PROXIES",
];

/// The same of JSON.
const VOLATILE_KEYS: [&str; 17] = [
    "ageMilliseconds",
    "caExpires",
    "connectedSeconds",
    "controller",
    "datapath",
    "maps",
    "hash",
    "kernel",
    "leads",
    "proxies",
    "reason",
    "replica",
    "revision",
    "revisionApplied",
    "revisionReceived",
    "source",
    "viewAgeMilliseconds",
];

/// Runs the program and compares.
pub(super) struct Golden {
    /// Where it runs.
    pub(super) place: Place,
    /// Texts that differ from run to run, and what stands for them.
    pub(super) known: Vec<(String, String)>,
}

/// Where it is.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cli").join(format!("{name}.txt"))
}

impl Golden {
    /// Runs `sheave` with these arguments, in front of it perhaps another program, and expects what the file says; soon, since
    /// what was caused a moment ago may not have reached every node and replica.
    pub(super) fn expect(&self, name: &str, before: &[&str], arguments: &[&str]) -> Result<()> {
        let text = self.said(before, arguments)?;
        if std::env::var_os("SHEAVE_WRITE_GOLDEN").is_some() {
            return fs::write(file(name), &text).with_context(|| format!("{}", file(name).display()));
        }
        let expected = fs::read_to_string(file(name)).with_context(|| format!("{}", file(name).display()))?;
        if text == expected {
            return Ok(());
        }
        until(&format!("{name} is as in its file"), SOON, || {
            let text = self.said(before, arguments)?;
            ensure!(text == expected, "it says\n{text}\nand not\n{expected}");
            Ok(())
        })
    }

    /// What it says, masked.
    fn said(&self, before: &[&str], arguments: &[&str]) -> Result<String> {
        let sheave = program("sheave")?.display().to_string();
        let words: Vec<&str> =
            before.iter().copied().chain([sheave.as_str()]).chain(arguments.iter().copied()).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = spawn(&mut command, &self.place)?.wait_with_output().context("sheave")?;
        let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        let code = output.status.code().context("sheave was killed")?;
        let shown: Vec<_> = before.iter().chain(arguments).map(|word| self.replaced(word)).collect();
        let shown = shown.join(" ").replacen(&before.join(" "), "", 1);
        let prefix = if before.is_empty() { String::new() } else { format!("{} ", self.replaced(&before.join(" "))) };
        Ok(format!("$ {prefix}sheave {}\n{}{}exit {code}\n", shown.trim(), self.masked(&stdout), self.masked(&stderr)))
    }

    fn masked(&self, text: &str) -> String {
        if let Ok(mut json) = serde_json::from_str::<Value>(text) {
            mask(&mut json);
            return self.replaced(&format!("{json:#}\n"));
        }
        let (mut out, mut columns) = (String::new(), Vec::new());
        for line in text.lines() {
            let heading = line.contains("  ") && !line.chars().any(char::is_lowercase) && !line.contains(['/', ':']);
            if heading {
                columns = starts(line);
            } else if line.is_empty() {
                columns.clear();
            }
            if columns.is_empty() {
                out.push_str(&self.replaced(&numbers(line)));
            } else {
                let cells = cells(line, &columns);
                let cells = cells.iter().zip(&columns).map(|(cell, (_, heading))| match cell.as_str() {
                    cell if cell == heading => cell.to_owned(),
                    // Without eBPF there are no maps.
                    "" | "-" if heading != "FULLEST MAP" => cell.clone(),
                    _ if VOLATILE.contains(&heading.as_str()) => "*".to_owned(),
                    cell => self.replaced(cell),
                });
                out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            }
            out.push('\n');
        }
        out
    }

    fn replaced(&self, text: &str) -> String {
        self.known.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }
}

/// Where columns start, by character, and their headings.
fn starts(heading: &str) -> Vec<(usize, String)> {
    let (mut found, mut at) = (Vec::new(), 0);
    for part in heading.split("  ") {
        let text = part.trim();
        if !text.is_empty() {
            let indent = part.chars().count() - part.trim_start().chars().count();
            found.push((at + indent, text.to_owned()));
        }
        at += part.chars().count() + 2;
    }
    found
}

/// A line's text in each column. That it fits between the columns' starts is what alignment means.
fn cells(line: &str, columns: &[(usize, String)]) -> Vec<String> {
    let all: Vec<char> = line.chars().collect();
    let ends = columns.iter().skip(1).map(|(start, _)| *start).chain([usize::MAX]);
    let one = |((start, _), end): (&(usize, String), usize)| {
        all.iter().skip(*start).take(end - start).collect::<String>().trim().to_owned()
    };
    columns.iter().zip(ends).map(one).collect()
}

/// A sentence without its days, seconds, versions and hashes.
fn numbers(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    for at in 0..words.len() {
        let counts = words.get(at + 1).is_some_and(|unit| ["days", "s"].contains(&unit.trim_end_matches([';', ','])));
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let version =
            words[at].strip_prefix('v').is_some_and(|rest| number(rest.split('-').next().unwrap_or_default()));
        let kernel = at > 0 && words[at - 1] == "Linux" && !words[at].starts_with("2.6.");
        let oldest = kernel && words[at] == "5.14";
        let hash = words[at].trim_end_matches(',');
        let hash = hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if (counts && number(&words[at]) && words[at] != "5") || version || hash || (kernel && !oldest) {
            words[at] = "*".to_owned();
        }
    }
    words.join(" ")
}

fn mask(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            for (key, value) in fields {
                match VOLATILE_KEYS.contains(&key.as_str()) && !value.is_null() {
                    true => *value = "*".into(),
                    false => mask(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(mask),
        _ => {}
    }
}
