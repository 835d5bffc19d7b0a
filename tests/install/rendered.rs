//! Manifests as the cluster gets them: rendered by the real kubectl, with ways to look into them.

use std::path::Path;

use serde_json::Value;

use crate::{root, succeed};

/// The objects of a kustomization, whose folder is given from the project's root or absolute.
pub(crate) fn kustomize(folder: &str) -> Vec<Value> {
    let kubectl = sheave_harness::kube::programs().unwrap().join("kubectl");
    objects(&succeed(kubectl.to_str().unwrap(), &["kustomize", root().join(folder).to_str().unwrap()]))
}

/// The objects of a file.
pub(crate) fn file(path: &Path) -> Vec<Value> {
    objects(&std::fs::read_to_string(path).unwrap())
}

fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(yaml);
    documents.map(|document| serde::Deserialize::deserialize(document).unwrap()).filter(|v| *v != Value::Null).collect()
}

/// The one object of a kind and name.
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0]
}

/// What pods are made of, with the kind and name of what makes them.
pub(crate) fn templates(objects: &[Value]) -> Vec<(String, &Value)> {
    let makers = objects.iter().filter(|object| object["spec"]["template"]["spec"].is_object());
    makers.map(|o| (format!("{} {}", text(&o["kind"]), text(&o["metadata"]["name"])), &o["spec"]["template"])).collect()
}

/// Strings of a list; none where there is no list.
pub(crate) fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// Items of a list; none where there is no list.
pub(crate) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A string, or nothing.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The value of a container's flag, which can also be given as environment.
pub(crate) fn flag<'a>(container: &'a Value, name: &str) -> &'a str {
    let given = strings(&container["args"]).into_iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
    let variable = format!("SHEAVE_{}", name.trim_start_matches('-').replace('-', "_").to_uppercase());
    let set = || items(&container["env"]).find(|env| env["name"] == variable).map(|env| text(&env["value"]));
    given.or_else(set).unwrap_or_else(|| panic!("{} has neither {name} nor {variable}", container["name"]))
}

/// What the kubelet sets from the controllers' Service, in pods of its namespace that want service links.
const SERVICE_LINKS: [&str; 2] = ["SHEAVE_DISCOVERY_SERVICE_HOST", "SHEAVE_DISCOVERY_SERVICE_PORT"];

/// Variables of a container that use another one before it is set: Kubernetes then leaves the reference as it is.
pub(crate) fn unset(container: &Value) -> Vec<String> {
    let (mut set, mut wrong) = (SERVICE_LINKS.to_vec(), Vec::new());
    let values = items(&container["env"]).map(|env| (text(&env["name"]), text(&env["value"])));
    let all: Vec<_> = values.chain(strings(&container["args"]).into_iter().map(|argument| ("", argument))).collect();
    for (name, value) in all {
        let used = value.split("$(").skip(1).filter_map(|rest| rest.split(')').next());
        wrong.extend(used.filter(|used| !set.contains(used)).map(|used| format!("{value}: {used}")));
        set.push(name);
    }
    wrong
}

/// The volume that a container sees at a path.
pub(crate) fn mounted<'a>(template: &'a Value, container: &Value, path: &str) -> &'a Value {
    let mounts: Vec<_> = items(&container["volumeMounts"]).collect();
    let mount = mounts.iter().find(|m| Path::new(path).starts_with(text(&m["mountPath"])));
    let name = &mount.unwrap_or_else(|| panic!("nothing is mounted for {path}"))["name"];
    items(&template["spec"]["volumes"]).find(|volume| volume["name"] == *name).unwrap()
}
