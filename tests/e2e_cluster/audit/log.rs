//! The API server's audit log, as far as it is about Sheave: what its accounts asked for, and when it was taken away.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// What accounts are called whose calls are read.
pub(crate) const ACCOUNTS: &str = "system:serviceaccount:sheave-system:";
/// What calls are granted by. While one of ours is gone, because somebody removes Sheave, its last pods are refused.
const GRANTING: [&str; 5] = ["namespaces", "roles", "rolebindings", "clusterroles", "clusterrolebindings"];

/// One call of an account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// The account, with everything in front.
    pub(crate) who: String,
    /// list, watch, get, create and so on.
    pub(crate) verb: String,
    /// API group; empty for the core's.
    pub(crate) group: String,
    /// Plural, with a subresource behind a slash.
    pub(crate) resource: String,
    /// Empty for all of them, and for what is in none.
    pub(crate) namespace: String,
    /// Empty for lists, watches and what is created.
    pub(crate) name: String,
    /// HTTP status of the answer.
    pub(crate) code: u64,
    /// Time and reason, for whoever reads of it.
    pub(crate) note: String,
    /// Whether something that grants was gone by then.
    pub(super) removed: bool,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, verb, group, resource, namespace, name, code, note, .. } = self;
        write!(f, "{who}: {verb} {resource}.{group} {namespace}/{name}: {code} ({note})")
    }
}

impl Call {
    fn parse(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (object, notes) = (&event["objectRef"], &event["annotations"]);
        let subresource = object["subresource"].as_str().map(|it| format!("/{it}")).unwrap_or_default();
        Self {
            who: text(&event["user"]["username"]),
            verb: text(&event["verb"]),
            group: text(&object["apiGroup"]),
            resource: text(&object["resource"]) + &subresource,
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
            note: format!("{} {}", text(&event["stageTimestamp"]), text(&notes["authorization.k8s.io/reason"])),
            removed: false,
        }
    }

    /// Whether the answer was that the account may not, while it was installed as it should be.
    pub(crate) fn forbidden(&self) -> bool {
        self.code == 403 && !self.removed
    }
}

/// All calls of accounts whose names begin with `accounts`, oldest first.
pub(crate) fn calls(state: &Path, accounts: &str) -> Result<Vec<Call>> {
    let (mut calls, mut gone) = (Vec::new(), BTreeSet::new());
    for file in files(state)? {
        let reader = BufReader::new(File::open(&file).with_context(|| format!("{}", file.display()))?);
        for line in reader.lines() {
            read(&line?, accounts, &mut gone, &mut calls);
        }
    }
    Ok(calls)
}

/// The log and what was rotated out of it, oldest first: their names have the time of that.
fn files(state: &Path) -> Result<Vec<PathBuf>> {
    let folder = state.join("logs/n1");
    let found = fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut files = found.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    files.retain(|path| name(path).starts_with("audit") && name(path).ends_with(".log"));
    files.sort_by_key(|path| (name(path) == "audit.log", name(path)));
    ensure!(!files.is_empty(), "{} has no audit log", folder.display());
    Ok(files)
}

/// One line; most are about somebody else, and are told by their text alone. A line that is cut off is still being written.
fn read(line: &str, accounts: &str, gone: &mut BTreeSet<(String, String)>, calls: &mut Vec<Call>) {
    let grants = || line.contains("\"name\":\"sheave") && GRANTING.iter().any(|it| line.contains(it));
    if !line.contains(accounts) && !grants() {
        return;
    }
    let Ok(event) = serde_json::from_str::<Value>(line) else { return };
    let call = Call::parse(&event);
    if call.who.starts_with(accounts) {
        calls.push(Call { removed: !gone.is_empty(), ..call });
    } else if GRANTING.contains(&call.resource.as_str()) && call.name.starts_with("sheave") && call.code < 300 {
        let object = (call.resource, call.name);
        match call.verb.as_str() {
            "delete" => drop(gone.insert(object)),
            "create" => drop(gone.remove(&object)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(who: &str, verb: &str, resource: &str, name: &str, code: u64) -> String {
        json!({"stage": "ResponseComplete", "verb": verb, "user": {"username": who}, "stageTimestamp": "2026",
            "objectRef": {"resource": resource, "name": name, "namespace": "x"}, "responseStatus": {"code": code}})
        .to_string()
    }

    #[test]
    fn refusals_count_except_while_sheave_is_being_removed() {
        let ours = format!("{ACCOUNTS}sheave-controller");
        let lines = [
            event(&ours, "list", "pods", "", 200),
            event("admin", "list", "pods", "", 403),
            event("admin", "delete", "clusterroles", "other", 200),
            event(&ours, "list", "pods", "", 403),
            event("admin", "delete", "clusterroles", "sheave-controller", 200),
            event(&ours, "list", "pods", "", 403),
            event("admin", "create", "clusterroles", "sheave-controller", 409),
            event(&ours, "list", "pods", "", 403),
            event("admin", "create", "clusterroles", "sheave-controller", 201),
            event(&ours, "list", "pods", "", 403),
            event(&ours, "list", "pods", "", 403)[..90].to_owned(),
        ];
        let (mut calls, mut gone) = (Vec::new(), BTreeSet::new());
        lines.iter().for_each(|line| read(line, ACCOUNTS, &mut gone, &mut calls));
        let forbidden: Vec<bool> = calls.iter().map(Call::forbidden).collect();
        assert_eq!(forbidden, [false, true, false, false, true]);
    }
}
