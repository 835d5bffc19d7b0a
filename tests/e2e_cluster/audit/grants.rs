//! What Roles grant, one verb of one resource (and one name) at a time, and which of that nobody has used.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::log::Call;

/// One thing that somebody may do.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    role: String,
    /// The accounts that are bound to the role.
    holders: BTreeSet<String>,
    /// Of a Role, its namespace.
    namespace: Option<String>,
    group: String,
    resource: String,
    verb: String,
    /// Where only one object is meant.
    name: Option<String>,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, verb, group, resource, .. } = self;
        write!(f, "{role}: {verb} {resource}")?;
        if !group.is_empty() {
            write!(f, ".{group}")?;
        }
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " {name}"))
    }
}

impl Grant {
    /// Whether it is of a group that no API server has: it is there for SubjectAccessReviews.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.group == "sheave.io"
    }

    fn covers(&self, call: &Call) -> bool {
        self.holders.contains(&call.who)
            && (&self.verb, &self.group, &self.resource) == (&call.verb, &call.group, &call.resource)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == call.namespace)
            && self.name.as_ref().is_none_or(|name| *name == call.name)
    }
}

/// Everything that the Roles and ClusterRoles among these objects grant, the latter first.
///
/// # Errors
/// Where a rule grants everything of a sort by `*`, of which nobody can tell what is used.
pub(crate) fn grants(objects: &[Value]) -> Result<Vec<Grant>> {
    let mut all = Vec::new();
    for kind in ["ClusterRole", "Role"] {
        for object in objects.iter().filter(|object| object["kind"] == kind) {
            let name = object["metadata"]["name"].as_str().context("a role's name")?;
            let role = format!("{kind} {name}");
            let namespace = object["metadata"]["namespace"].as_str().filter(|_| kind == "Role").map(str::to_owned);
            let holders = holders(objects, kind, name);
            let rules = object["rules"].as_array().with_context(|| format!("{role} has no rules"))?;
            for rule in rules {
                ensure!(rule["nonResourceURLs"].is_null(), "{role}: paths are not known here: {rule}");
                for (group, resource, verb, name) in parts(rule) {
                    ensure!([&group, &resource, &verb].iter().all(|it| *it != "*"), "{role} grants too much: {rule}");
                    let (role, holders, namespace) = (role.clone(), holders.clone(), namespace.clone());
                    all.push(Grant { role, holders, namespace, group, resource, verb, name });
                }
            }
        }
    }
    ensure!(!all.is_empty(), "nothing is granted");
    Ok(all)
}

/// The accounts that a role is bound to.
fn holders(objects: &[Value], kind: &str, role: &str) -> BTreeSet<String> {
    let bindings = objects.iter().filter(|object| object["kind"] == format!("{kind}Binding"));
    let ours = bindings.filter(|it| it["roleRef"]["kind"] == kind && it["roleRef"]["name"] == role);
    let subjects = ours.flat_map(|it| it["subjects"].as_array().into_iter().flatten());
    let accounts = subjects.filter(|it| it["kind"] == "ServiceAccount");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    accounts.map(|it| format!("system:serviceaccount:{}:{}", text(&it["namespace"]), text(&it["name"]))).collect()
}

/// Every group, resource, verb and name of a rule.
fn parts(rule: &Value) -> impl Iterator<Item = (String, String, String, Option<String>)> {
    let list = |field: &str| -> Vec<String> {
        rule[field].as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let mut names: Vec<_> = list("resourceNames").into_iter().map(Some).collect();
    if names.is_empty() {
        names.push(None);
    }
    let mut all = Vec::new();
    for group in list("apiGroups") {
        for resource in list("resources") {
            for verb in list("verbs") {
                all.extend(names.iter().map(|name| (group.clone(), resource.clone(), verb.clone(), name.clone())));
            }
        }
    }
    all.into_iter()
}

/// What no call needed. A call needs the first grant only that covers it, so that one which says the same again is found, too.
pub(crate) fn unused<'a>(grants: &'a [Grant], calls: &[Call]) -> Vec<&'a Grant> {
    let mut used = vec![false; grants.len()];
    for call in calls.iter().filter(|call| call.code != 403) {
        if let Some(first) = grants.iter().position(|grant| grant.covers(call)) {
            used[first] = true;
        }
    }
    grants.iter().zip(used).filter(|(_, used)| !used).map(|(grant, _)| grant).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:s:c";

    fn roles(rules: &Value) -> Vec<Value> {
        let meta = |name: &str| json!({"name": name, "namespace": "s"});
        let binding = |kind: &str| {
            json!({"kind": format!("{kind}Binding"), "roleRef": {"kind": kind, "name": "r"},
                "subjects": [{"kind": "ServiceAccount", "name": "c", "namespace": "s"}]})
        };
        let wide = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
        vec![
            json!({"kind": "Role", "metadata": meta("r"), "rules": rules}),
            json!({"kind": "ClusterRole", "metadata": meta("r"), "rules": wide}),
            binding("Role"),
            binding("ClusterRole"),
        ]
    }

    fn call(verb: &str, resource: &str, name: &str) -> Call {
        let text = str::to_owned;
        let (who, verb, resource, namespace, name) = (text(ACCOUNT), text(verb), text(resource), text("s"), text(name));
        Call { who, verb, resource, namespace, name, code: 200, ..Call::default() }
    }

    fn left(rules: &Value, calls: &[Call]) -> Vec<String> {
        unused(&grants(&roles(rules)).unwrap(), calls).into_iter().map(Grant::to_string).collect()
    }

    #[test]
    fn each_verb_resource_and_name_has_to_be_used_for_itself() {
        let rules = json!([{"apiGroups": [""], "resources": ["secrets", "leases"], "verbs": ["get"], "resourceNames": ["a", "b"]}]);
        let calls = [
            call("list", "pods", ""),
            call("get", "secrets", "a"),
            call("get", "leases", "b"),
            call("get", "leases", "c"),
        ];
        assert_eq!(left(&rules, &calls), ["Role r: get secrets b", "Role r: get leases a"]);
        let elsewhere = Call { namespace: "other".into(), ..call("get", "secrets", "b") };
        let somebody = Call { who: "system:serviceaccount:s:d".into(), ..call("get", "secrets", "b") };
        let refused = Call { code: 403, ..call("get", "secrets", "b") };
        assert_eq!(left(&rules, &[elsewhere, somebody, refused]).len(), 5);
    }

    #[test]
    fn what_is_granted_twice_is_used_once() {
        let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
        assert_eq!(left(&rules, &[call("list", "pods", "")]), ["Role r: list pods"]);
    }

    #[test]
    fn a_grant_of_everything_is_refused_and_an_unbound_role_is_unused() {
        assert!(grants(&roles(&json!([{"apiGroups": [""], "resources": ["*"], "verbs": ["get"]}]))).is_err());
        let mut objects = roles(&json!([]));
        objects.pop();
        assert_eq!(unused(&grants(&objects).unwrap(), &[call("list", "pods", "")]).len(), 1);
    }
}
