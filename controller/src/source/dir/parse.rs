//! A document of YAML or JSON becomes objects. What can't is a fault that names the field.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sheave_index::facts::{self, BadObject};
use sheave_index::{Condition, Facts, Kind, Object, ObjectKey, Strings};

use super::fault::Fault;
use super::split::Document;

/// The largest object that is read: what an API server's etcd takes in one request by default.
pub(super) const MAX_OBJECT: usize = 1_536 * 1024;

/// An object as it is written in the folder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) key: ObjectKey,
    pub(super) written: Written,
}

/// A Service waits for its addresses; anything else is facts already.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Written {
    Service(Box<Service>),
    Facts(Object),
}

/// What a document holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Parsed {
    pub(super) items: Vec<Arc<Item>>,
    /// Each with its line inside the document, from 0, where it is known.
    pub(super) faults: Vec<(Option<usize>, Fault)>,
    /// Some object in it could not be read, so nobody knows whether it is still there.
    pub(super) broken: bool,
}

impl Parsed {
    pub(super) fn fault(&mut self, line: Option<usize>, kind: &str, field: &str, message: String, remedy: &str) {
        let (kind, field, remedy) = (kind.to_owned(), field.to_owned(), remedy.to_owned());
        self.faults.push((line, Fault { place: String::new(), kind, field, message, remedy }));
    }
}

/// Reads one document of a YAML file.
pub(super) fn yaml(document: &Document<'_>, strings: &mut Strings) -> Parsed {
    let mut parsed = Parsed::default();
    if document.text.len() > MAX_OBJECT && !may_be_list(document.text) {
        too_large(&mut parsed, document.text.len(), "");
        return parsed;
    }
    match serde_yaml_ng::from_str::<Value>(document.text) {
        Ok(value) => read(value, Some(document.text), &mut parsed, strings),
        Err(error) => {
            let line = error.location().map(|at| at.line().saturating_sub(1));
            parsed.broken = true;
            parsed.fault(line, "", "", format!("is no YAML: {}", bare(&error)), "mend the syntax");
        }
    }
    parsed
}

/// Reads one value of a JSON file.
pub(super) fn json(value: Value, length: usize, strings: &mut Strings) -> Parsed {
    let mut parsed = Parsed::default();
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    if length > MAX_OBJECT && !is_list {
        too_large(&mut parsed, length, "");
    } else {
        read(value, None, &mut parsed, strings);
    }
    parsed
}

fn too_large(parsed: &mut Parsed, length: usize, field: &str) {
    parsed.broken = true;
    let message = format!("is an object of {length} bytes, more than {MAX_OBJECT}");
    parsed.fault(None, "", field, message, "make it smaller; an API server would refuse it too");
}

/// Lists may be larger than an object; whether a text is one must be known before it is parsed.
fn may_be_list(text: &str) -> bool {
    let kind = text.lines().find_map(|line| line.strip_prefix("kind:"));
    kind.is_some_and(|kind| kind.trim().trim_matches(['"', '\'']).ends_with("List"))
}

fn read(mut value: Value, text: Option<&str>, parsed: &mut Parsed, strings: &mut Strings) {
    if value.is_null() {
        return;
    }
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    let Some(item_kind) = kind.strip_suffix("List").filter(|_| value.get("items").is_some_and(Value::is_array)) else {
        object(value, "", text, parsed, strings);
        return;
    };
    let version = value["apiVersion"].clone();
    let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else { return };
    for (index, mut item) in items.into_iter().enumerate() {
        // The items of a typed list need not repeat what the list says.
        if let Value::Object(fields) = &mut item
            && !item_kind.is_empty()
        {
            fields.entry("kind").or_insert_with(|| item_kind.into());
            fields.entry("apiVersion").or_insert_with(|| version.clone());
        }
        object(item, &format!("items[{index}]"), None, parsed, strings);
    }
}

/// Reads one object; `at` is its place in a list, `text` its own text where it has one.
fn object(mut value: Value, at: &str, text: Option<&str>, parsed: &mut Parsed, strings: &mut Strings) {
    if !value.is_object() {
        parsed.broken = true;
        parsed.fault(None, "", at, "is no object".into(), "write apiVersion, kind and metadata");
        return;
    }
    if text.is_none() && !at.is_empty() {
        let length = value.to_string().len();
        if length > MAX_OBJECT {
            return too_large(parsed, length, at);
        }
    }
    let written = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (written("apiVersion"), written("kind"));
    let known = Kind::ALL.into_iter().find(|known| known.as_str() == kind && known.api_version() == version);
    let Some(known) = known else {
        let message = format!("kind {kind:?} of apiVersion {version:?} is not read here and is ignored");
        parsed.fault(None, "", at, message, "take it out of the folder, or mend apiVersion and kind");
        return;
    };
    let field = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    if let Err((name, problem)) = name(&mut value, known) {
        parsed.broken = true;
        let remedy = "use lower case letters, digits, '-' and '.', as an API server wants them";
        parsed.fault(None, known.as_str(), &field(name), problem, remedy);
        return;
    }
    let made = match known {
        Kind::Service => typed::<Service>(&value, text).map(|service| Ok(service_item(service, strings))),
        Kind::Pod => typed::<Pod>(&value, text).map(|pod| from_pod(&pod, strings)),
        Kind::Node => typed::<Node>(&value, text).map(|node| facts::from_node(&node, strings).map(item)),
        Kind::Namespace => typed::<Namespace>(&value, text).map(|ns| facts::from_namespace(&ns, strings).map(item)),
        Kind::EndpointSlice => typed::<EndpointSlice>(&value, text).map(|s| facts::from_slice(&s, strings).map(item)),
        Kind::ServiceCidr => {
            typed::<ServiceCIDR>(&value, text).map(|c| facts::from_service_cidr(&c, strings).map(item))
        }
    };
    match made {
        Ok(Ok(item)) => parsed.items.push(Arc::new(item)),
        Ok(Err(bad)) => {
            parsed.broken = true;
            parsed.fault(None, known.as_str(), at, bad.to_string(), "an object is known by its name");
        }
        Err(wrong) => {
            parsed.broken = true;
            let place = if wrong.field.is_empty() { at.to_owned() } else { field(&wrong.field) };
            parsed.fault(wrong.line, known.as_str(), &place, wrong.message, "write what the API's reference says");
        }
    }
}

/// Checks the name, and gives a namespace to an object that wants one and has none.
fn name(value: &mut Value, kind: Kind) -> Result<(), (&'static str, String)> {
    let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Err(("metadata", "is missing".into()));
    };
    let valid = |text: &str| {
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        !text.is_empty() && text.len() <= 253 && text.bytes().all(inside)
    };
    match meta.get("name") {
        Some(Value::String(name)) if valid(name) => {}
        Some(name) => return Err(("metadata.name", format!("{name} is no name"))),
        None => return Err(("metadata.name", "is missing".into())),
    }
    if !kind.is_namespaced() {
        return Ok(());
    }
    match meta.get("namespace") {
        None | Some(Value::Null) => {
            meta.insert("namespace".into(), "default".into());
        }
        Some(Value::String(namespace)) if namespace.is_empty() => {
            meta.insert("namespace".into(), "default".into());
        }
        Some(Value::String(namespace)) if valid(namespace) => {}
        Some(namespace) => return Err(("metadata.namespace", format!("{namespace} is no name"))),
    }
    Ok(())
}

/// Why an object does not have the form of its kind.
struct Wrong {
    line: Option<usize>,
    field: String,
    message: String,
}

/// Reads an object as its kind. Only when that fails its text is read a second time, by the parser that knows lines.
fn typed<T: DeserializeOwned>(value: &Value, text: Option<&str>) -> Result<T, Wrong> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let again = text.and_then(|text| serde_yaml_ng::from_str::<T>(text).err());
        let line = again.and_then(|again| again.location()).map(|at| at.line().saturating_sub(1));
        let field = error.path().to_string();
        Wrong { line, field: if field == "." { String::new() } else { field }, message: error.inner().to_string() }
    })
}

/// A YAML error without its place, which is told in lines of the file.
fn bare(error: &serde_yaml_ng::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn item(object: Object) -> Item {
    Item { key: object.key.clone(), written: Written::Facts(object) }
}

/// Keeps of a Service what is read, or needed to assign its addresses.
fn service_item(mut service: Service, strings: &mut Strings) -> Item {
    let meta = &mut service.metadata;
    meta.managed_fields = None;
    meta.owner_references = None;
    meta.finalizers = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, _| key.starts_with("sheave.io/"));
    }
    let namespace = strings.get(meta.namespace.as_deref().unwrap_or_default());
    let key = ObjectKey::new(Kind::Service, namespace, meta.name.as_deref().unwrap_or_default());
    Item { key, written: Written::Service(Box::new(service)) }
}

/// A folder has no kubelet, so a Pod without status is told what it lacks to be an endpoint.
fn from_pod(pod: &Pod, strings: &mut Strings) -> Result<Item, BadObject> {
    let mut object = facts::from_pod(pod, strings)?;
    let Facts::Pod(read) = &object.facts else { return Ok(item(object)) };
    let status = pod.status.clone().unwrap_or_default();
    let mut lacks = |field: &str, message: &str, remedy: &str| {
        let (field, message, remedy) = (field.to_owned(), message.to_owned(), remedy.to_owned());
        object.conditions.push(Condition { object: object.key.clone(), field, message, remedy });
    };
    if !read.finished {
        if read.ips.is_empty() && status.pod_ip.is_none() && status.pod_ips.is_none() {
            let remedy = "a folder has no kubelet: write the pod's addresses";
            lacks("status.podIPs", "is missing, so the pod is no endpoint", remedy);
        }
        if !status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready") {
            let remedy = "a folder has no kubelet: write a condition of type Ready and status \"True\"";
            lacks("status.conditions", "has no Ready, so the pod is not ready", remedy);
        }
    }
    Ok(item(object))
}
