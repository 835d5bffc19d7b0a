//! Where the cluster's objects are written, so that a case runs unchanged on an API server and on a folder of YAML.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A place that the controller reads objects from.
pub trait Source: Send + Sync {
    /// `kube` or `dir`, as reports name it.
    fn name(&self) -> &'static str;

    /// The controller's arguments for reading it.
    fn arguments(&self) -> Vec<String>;

    /// Makes a namespace.
    fn namespace(&self, name: &str) -> Result<()>;

    /// Creates an object or replaces it, its status too (as a kubelet or a cloud's controller would write that).
    fn apply(&self, object: &Value) -> Result<()>;

    /// Takes an object away at once; one that is not there is fine.
    fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()>;

    /// Sets a pod's deletionTimestamp, `grace` seconds ahead; it stays until [`Source::remove`].
    fn terminate(&self, namespace: &str, name: &str, grace: u32) -> Result<()>;
}

/// Kind, namespace (empty: none) and name of an object.
pub fn identity(object: &Value) -> Result<(&str, &str, &str)> {
    let kind = object["kind"].as_str().context("an object without kind")?;
    let name = object["metadata"]["name"].as_str().with_context(|| format!("a {kind} without a name"))?;
    Ok((kind, object["metadata"]["namespace"].as_str().unwrap_or(""), name))
}

/// A folder of YAML files, one object each, replaced by rename so that no reader sees half of one.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    objects: Mutex<BTreeMap<String, Value>>,
}

impl Folder {
    /// An empty folder.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path, objects: Mutex::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The file that an object is kept in.
    pub fn file(&self, kind: &str, namespace: &str, name: &str) -> PathBuf {
        self.path.join(file_name(kind, namespace, name))
    }

    /// Puts a file of any content into the folder.
    pub fn write_raw(&self, file: &str, content: &[u8]) -> Result<()> {
        let part = self.path.join(format!(".{file}.part"));
        let target = self.path.join(file);
        fs::write(&part, content).with_context(|| format!("{}", part.display()))?;
        fs::rename(&part, &target).with_context(|| format!("{}", target.display()))
    }

    /// Writes every object again, into a folder that may have been lost.
    pub fn restore(&self) -> Result<()> {
        fs::create_dir_all(&self.path)?;
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for object in objects.values() {
            self.write(object)?;
        }
        Ok(())
    }

    fn write(&self, object: &Value) -> Result<()> {
        let (kind, namespace, name) = identity(object)?;
        let text = serde_yaml_ng::to_string(object).context("YAML")?;
        self.write_raw(&file_name(kind, namespace, name), text.as_bytes())
    }
}

fn file_name(kind: &str, namespace: &str, name: &str) -> String {
    format!("{namespace}_{}_{name}.yaml", kind.to_lowercase())
}

impl Source for Folder {
    fn name(&self) -> &'static str {
        "dir"
    }

    fn arguments(&self) -> Vec<String> {
        vec!["--source".to_owned(), format!("dir:{}", self.path.display())]
    }

    fn namespace(&self, _name: &str) -> Result<()> {
        Ok(()) // a folder's objects name their namespace, and that is all there is to it
    }

    fn apply(&self, object: &Value) -> Result<()> {
        let (kind, namespace, name) = identity(object)?;
        let key = file_name(kind, namespace, name);
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).insert(key, object.clone());
        self.write(object)
    }

    fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let file = file_name(kind, namespace, name);
        if self.objects.lock().unwrap_or_else(PoisonError::into_inner).remove(&file).is_some() {
            fs::remove_file(self.path.join(&file)).with_context(|| format!("remove {file}"))?;
        }
        Ok(())
    }

    fn terminate(&self, namespace: &str, name: &str, grace: u32) -> Result<()> {
        let key = file_name("Pod", namespace, name);
        let known = self.objects.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let mut object = known.with_context(|| format!("no pod {namespace}/{name}"))?;
        object["metadata"]["deletionTimestamp"] = json!(crate::objects::timestamp(grace.into())?);
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.apply(&object)
    }
}
