//! Every replica that this node knows of, and every CA that it trusts: from flags, a mounted ConfigMap, and what the last stream
//! said. They are used together, so that one that is wrong or late harms nothing while another one is right.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::TrustAnchor;
use sheave_api::proto;
use sheave_model::ContentHash;
use tokio::sync::watch;

use super::directory::{Directory, anchors};
use super::remember;
use crate::config::Endpoint;
use crate::metrics::Metrics;
use crate::supervise::Shutdown;

/// Where to look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// Endpoints by flag, first of all and in their order.
    pub(crate) given: Vec<Endpoint>,
    /// Where the ConfigMap is mounted.
    pub(crate) mounted: Option<PathBuf>,
    /// The file with what the last stream said; none where that says nothing that can be used.
    pub(crate) remembered: Option<PathBuf>,
    /// The address of the controllers' own Service, tried when nobody else answers: it works only once this node serves it.
    pub(crate) last_resort: Option<SocketAddr>,
}

#[derive(Debug, Default)]
struct State {
    mounted: Directory,
    /// What was last said to be wrong with the mounted folder.
    told: Vec<String>,
}

/// All of it, shared by the client's task and its streams.
#[derive(Clone)]
pub(crate) struct Book {
    /// This node: each node has an order of its own, so that replicas share the nodes.
    node: Arc<str>,
    sources: Arc<Sources>,
    state: Arc<Mutex<State>>,
    /// The last stream's word; streams move it, and who saves it follows.
    remembered: watch::Sender<Directory>,
    metrics: Metrics,
}

impl Book {
    /// Reads what is remembered.
    pub(crate) fn open(node: &str, sources: Sources, metrics: Metrics) -> Self {
        let remembered = sources.remembered.as_deref().and_then(remember::load).unwrap_or_default();
        let (sources, remembered) = (Arc::new(sources), watch::Sender::new(remembered));
        Self { node: node.into(), sources, state: Arc::default(), remembered, metrics }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All endpoints in the order in which they should be tried, and whether the last is the last resort. Looks at the
    /// mounted folder, where files change by the swap of a link, so that there is nothing to watch.
    pub(super) fn endpoints(&self) -> (Vec<Endpoint>, bool) {
        let mut state = self.lock();
        if let Some(folder) = &self.sources.mounted {
            let (mounted, wrong) = Directory::mounted(folder);
            if wrong != state.told {
                if !wrong.is_empty() {
                    tracing::warn!(wrong = wrong.join("; "), "--discovery-dir: going on with what is good in it");
                }
                state.told = wrong;
            }
            state.mounted = mounted;
        }
        let mut found = state.mounted.controllers.clone();
        drop(state);
        found.extend(&self.remembered.borrow().controllers);
        found.sort_by_cached_key(|address| (self.rank(*address), *address));
        found.dedup();
        let mut all = self.sources.given.clone();
        for endpoint in found.into_iter().map(Endpoint::Tcp) {
            if !all.contains(&endpoint) {
                all.push(endpoint);
            }
        }
        let vip = self.sources.last_resort.map(Endpoint::Tcp).filter(|vip| !all.contains(vip));
        let has_last_resort = vip.is_some();
        all.extend(vip);
        self.metrics.controllers_known.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        (all, has_last_resort)
    }

    /// Highest random weight: nodes spread over replicas, and few move when one comes or goes.
    fn rank(&self, address: SocketAddr) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&*self.node, address).hash(&mut hasher);
        hasher.finish()
    }

    /// The CAs of all sources.
    pub(super) fn anchors(&self) -> Vec<TrustAnchor<'static>> {
        let mut all = anchors(&self.lock().mounted.ca).0;
        for anchor in anchors(&self.remembered.borrow().ca).0 {
            if !all.contains(&anchor) {
                all.push(anchor);
            }
        }
        all
    }

    /// Takes a stream's word, and leaves it to [`Self::keep`] to save it: the disk may hang, and updates wait behind this.
    /// Returns what to acknowledge it with.
    ///
    /// # Errors
    /// Where it can't be used; what was known stands.
    pub(super) fn learn(&self, message: proto::Directory) -> Result<ContentHash, String> {
        let (directory, hash) = Directory::from_proto(message)?;
        if self.sources.remembered.is_some() {
            self.remembered.send_replace(directory);
        }
        Ok(hash)
    }

    /// Saves what is learned until everything stops.
    pub(crate) async fn keep(self, shutdown: Shutdown) {
        if let Some(file) = &self.sources.remembered {
            remember::keep(file, self.remembered.subscribe(), &self.metrics, &shutdown).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::ca;
    use super::*;
    use crate::supervise::Stop;

    struct World {
        folder: tempfile::TempDir,
        sources: Sources,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let sources = Sources {
                mounted: Some(folder.path().join("mounted")),
                remembered: Some(folder.path().join("remembered")),
                ..Sources::default()
            };
            std::fs::create_dir(folder.path().join("mounted")).unwrap();
            Self { folder, sources }
        }

        fn book(&self, node: &str) -> Book {
            Book::open(node, self.sources.clone(), Metrics::new().unwrap())
        }

        /// Saves what a book holds, as at the end of a process.
        async fn saved(&self, book: &Book) {
            let shutdown = Shutdown::new();
            shutdown.stop(Stop::Asked);
            book.clone().keep(shutdown).await;
        }

        fn mount(&self, controllers: &str, ca: &str) {
            std::fs::write(self.folder.path().join("mounted/controllers"), controllers).unwrap();
            std::fs::write(self.folder.path().join("mounted/ca.crt"), ca).unwrap();
        }
    }

    fn directory(controllers: &[&str], ca: &str) -> proto::Directory {
        proto::Directory { controllers: controllers.iter().map(|&a| a.to_owned()).collect(), ca: ca.to_owned() }
    }

    fn shown(book: &Book) -> Vec<String> {
        let mut all: Vec<_> = book.endpoints().0.iter().map(Endpoint::to_string).collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn mounted_and_remembered_are_used_together_and_either_alone() {
        let world = World::new();
        let book = world.book("n1");
        assert!(shown(&book).is_empty() && book.anchors().is_empty(), "nothing is known, and that is no error");
        let (one, two) = (ca(), ca());
        world.mount("10.0.0.1:1\n", &one);
        assert_eq!(shown(&book), ["10.0.0.1:1"]);
        book.learn(directory(&["10.0.0.2:1", "10.0.0.1:1"], &two)).unwrap();
        assert_eq!((shown(&book).len(), book.anchors().len()), (2, 2));
        world.mount("broken\n", "broken");
        assert_eq!((shown(&book).len(), book.anchors().len()), (2, 1));
        std::fs::remove_dir_all(world.folder.path().join("mounted")).unwrap();
        world.saved(&book).await;
        let next = world.book("n1");
        assert_eq!(shown(&next), ["10.0.0.1:1", "10.0.0.2:1"], "the next process remembers");
        assert_eq!(next.anchors().len(), 1);
    }

    #[test]
    fn what_a_stream_says_takes_the_place_of_what_one_said_before() {
        let world = World::new();
        let book = world.book("n1");
        let (one, two) = (ca(), ca());
        let hash = book.learn(directory(&["10.0.0.1:1"], &one)).unwrap();
        assert_eq!(hash, sheave_api::content_hash(one.as_bytes()));
        book.learn(directory(&["10.0.0.2:1"], &two)).unwrap();
        assert_eq!((shown(&book), book.anchors().len()), (vec!["10.0.0.2:1".to_owned()], 1));
        assert!(book.learn(directory(&[], &one)).is_err());
        assert_eq!(shown(&book), ["10.0.0.2:1"], "what can't be used changes nothing");
    }

    #[test]
    fn nodes_spread_over_replicas_and_the_last_resort_is_last() {
        let mut world = World::new();
        world.sources.given = vec![Endpoint::Tcp("10.0.0.9:1".parse().unwrap())];
        world.sources.last_resort = Some("10.96.0.5:1".parse().unwrap());
        world.mount("10.0.0.1:1\n10.0.0.2:1\n10.0.0.9:1\n", &ca());
        let mut seconds = std::collections::BTreeSet::new();
        for node in 0..32 {
            let (all, has_last_resort) = world.book(&format!("n{node}")).endpoints();
            let all: Vec<_> = all.iter().map(Endpoint::to_string).collect();
            assert!(has_last_resort && all.len() == 4, "{all:?}");
            assert_eq!((all[0].as_str(), all[3].as_str()), ("10.0.0.9:1", "10.96.0.5:1"));
            seconds.insert(all[1].clone());
        }
        assert_eq!(seconds.len(), 2, "both replicas are somebody's first");
    }
}
