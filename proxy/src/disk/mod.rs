//! The last snapshot, kept in the state folder, so that a proxy that starts without a controller serves what it last knew.
//!
//! Written off the hot path and at a bounded rate (`keep`), and only once a controller has confirmed all of it; a file
//! that can't be right is set aside, never half read. It holds no secrets: Services, addresses and names.

mod format;
mod keep;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sheave_model::{ContentHash, Delta, Resource};

pub(crate) use format::{FormatError, save};
pub(crate) use keep::{Keeper, LAST_SAVE, RETRY, keep};

/// Whose kernel state a snapshot belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The node's name.
    pub(crate) node: String,
    /// The kernel's id of this boot.
    pub(crate) boot_id: String,
    /// The cookie of the node's network namespace.
    pub(crate) netns_cookie: u64,
}

impl Identity {
    /// That of this process.
    ///
    /// # Errors
    /// Where the kernel tells no boot id or no cookie.
    pub(crate) fn current(node: &str) -> std::io::Result<Self> {
        Ok(Self { node: node.to_owned(), boot_id: boot_id()?, netns_cookie: sheave_loader::netns_cookie()? })
    }
}

/// The kernel's random id of this boot.
fn boot_id() -> std::io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// A snapshot that was read.
#[derive(Debug)]
pub(crate) struct Saved {
    /// Everything in it, as a delta from nothing.
    pub(crate) delta: Delta,
    /// When a controller last confirmed it.
    pub(crate) confirmed: SystemTime,
    /// Whether it comes from another boot or network namespace: this node's own endpoints are then left out.
    pub(crate) stale: bool,
}

/// Reads the snapshot, where there is one that fits. One that doesn't is renamed to `snapshot.damaged`, so that it can be
/// looked at and isn't met again, and said so in one line.
pub(crate) fn load(path: &Path, identity: &Identity) -> Option<Saved> {
    let error = match format::read(path) {
        Ok(Some((header, mut delta))) if header.identity.node == identity.node => {
            let stale = header.identity != *identity;
            if stale {
                without_own_endpoints(&mut delta, &identity.node);
            }
            let confirmed = SystemTime::UNIX_EPOCH + Duration::from_millis(header.confirmed_unix_millis);
            return Some(Saved { delta, confirmed, stale });
        }
        Ok(None) => return None,
        Ok(Some((header, _))) => FormatError::OtherNode(header.identity.node),
        Err(error) => error,
    };
    let aside = path.with_extension("damaged");
    let renamed = fs::rename(path, &aside);
    tracing::warn!(
        file = %path.display(), %error, set_aside = renamed.is_ok(),
        "the snapshot on disk can't be used and is set aside as {}; starting empty until a controller answers", aside.display(),
    );
    None
}

/// After another boot, or in another namespace, the node's pods are not the ones in the file; others may well be.
fn without_own_endpoints(delta: &mut Delta, node: &str) {
    for upsert in &mut delta.upserts {
        let changed = match &mut upsert.resource {
            Resource::Service(service) => {
                let before = service.endpoints.len();
                service.endpoints.retain(|endpoint| endpoint.node.as_deref() != Some(node));
                service.endpoints.len() != before
            }
            Resource::Node(facts) => !std::mem::take(&mut facts.pods).is_empty(),
            Resource::Cluster(_) => false,
        };
        if changed {
            // No content has this hash, so Hello doesn't claim to hold what was just taken out.
            upsert.hash = ContentHash(0);
        }
    }
}

/// Everything that a [`Keeper`] and its saves share.
pub(crate) type SharedIdentity = Arc<Identity>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{delta, service};
    use sheave_model::{NodeFacts, Snapshot, Store, Upsert, View};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::AtomicBool;

    fn identity() -> Identity {
        Identity { node: "n1".into(), boot_id: "b".into(), netns_cookie: 7 }
    }

    fn snapshot() -> Snapshot {
        let mut delta = delta(vec![service("a", "10.0.0.1"), service("b", "fd00::1")]);
        let facts = NodeFacts { name: "n1".into(), pods: vec!["10.1.0.9".parse().unwrap()], ..NodeFacts::default() };
        let resource = Resource::Node(facts);
        delta.upserts.push(Upsert { hash: sheave_api::encode_resource(&resource).hash, resource });
        delta.view = View { source: "s".into(), versions: [("Pod".to_owned(), 9)].into() };
        let mut store = Store::default();
        store.apply(delta);
        store.snapshot().clone()
    }

    fn saved() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        save(&path, &snapshot(), &identity(), SystemTime::now(), &AtomicBool::new(false)).unwrap();
        (dir, path)
    }

    #[test]
    fn what_was_saved_is_what_is_read() {
        let (dir, path) = saved();
        let read = load(&path, &identity()).unwrap();
        assert!(!read.stale);
        assert_eq!(read.delta, snapshot().to_delta());
        assert!(read.confirmed.elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn another_boot_or_namespace_leaves_out_this_nodes_own_endpoints() {
        let (_dir, path) = saved();
        for other in [Identity { boot_id: "c".into(), ..identity() }, Identity { netns_cookie: 8, ..identity() }] {
            let read = load(&path, &other).unwrap();
            assert!(read.stale);
            for upsert in read.delta.upserts {
                assert_eq!(upsert.hash, ContentHash(0));
                match upsert.resource {
                    Resource::Service(service) => assert!(service.endpoints.is_empty()),
                    Resource::Node(node) => assert!(node.pods.is_empty()),
                    Resource::Cluster(_) => panic!("none was saved"),
                }
            }
        }
    }

    #[test]
    fn any_damage_is_noticed_and_the_file_is_set_aside() {
        let (dir, path) = saved();
        let good = fs::read(&path).unwrap();
        let mut cases: Vec<Vec<u8>> = (0..good.len()).step_by(7).map(|n| good[..n].to_vec()).collect();
        cases.extend((0..good.len()).step_by(5).map(|n| {
            let mut bad = good.clone();
            bad[n] ^= 0x10;
            bad
        }));
        cases.push([good.clone(), vec![0]].concat());
        for bad in cases {
            fs::write(&path, &bad).unwrap();
            assert!(load(&path, &identity()).is_none(), "{} bytes", bad.len());
            assert!(!path.exists());
            assert_eq!(fs::read(dir.path().join("snapshot.damaged")).unwrap(), bad);
        }
        assert!(load(&path, &identity()).is_none(), "no file is no error");
    }

    #[test]
    fn another_nodes_snapshot_is_not_served() {
        let (_dir, path) = saved();
        assert!(load(&path, &Identity { node: "n2".into(), ..identity() }).is_none());
        assert!(!path.exists());
    }
}
