//! Objects from an API server: one list and one watch per kind, converted to facts as they come, so that nothing else is held.
//!
//! The list-and-watch loop is our own rather than kube-runtime's, because resourceVersions, bookmarks' too, are what a view
//! is made of, and because a list can be asked for (`watch`).

mod backoff;
mod kinds;
#[cfg(test)]
mod tests;
mod watch;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::task::JoinSet;

pub(crate) use self::backoff::Backoff;
use super::{Closed, Feed, Source};
use crate::config::ConfigError;

/// A connection that isn't up by then is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request or a watch that brings nothing for this long is given up; bookmarks come about once a minute.
const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// A client from a kubeconfig, or, without one, from the usual places and then the pod's own account. `api_server` is reached
/// in place of the address found there: in a pod that is a Service's, which needs the proxies that need us.
pub(crate) async fn client(kubeconfig: Option<&Path>, api_server: Option<&str>) -> anyhow::Result<Client> {
    let mut config = match (kubeconfig, api_server) {
        (Some(path), _) => {
            let unusable = |error| ConfigError(format!("--kubeconfig {}: {error}", path.display()));
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)?
        }
        (None, None) => kube::Config::infer().await.map_err(|error| {
            ConfigError(format!("no kubeconfig and no pod's account was found ({error}); give --kubeconfig"))
        })?,
        (None, Some(_)) => kube::Config::incluster_dns().map_err(|error| {
            ConfigError(format!("no pod's account was found ({error}); give --kubeconfig beside --api-server"))
        })?,
    };
    if let Some(address) = api_server {
        let url = format!("https://{address}").parse();
        config.cluster_url = url.map_err(|error| ConfigError(format!("--api-server {address}: {error}")))?;
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(READ_TIMEOUT);
    Client::try_from(config).context("no client can be made for the API server")
}

/// An API server as a source.
#[derive(Clone)]
pub(crate) struct KubeSource {
    client: Client,
}

impl KubeSource {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Source for KubeSource {
    /// The uid of namespace kube-system: every cluster has one and keeps it, a rebuilt one gets another.
    async fn identify(&mut self) -> anyhow::Result<String> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let namespace = namespaces.get("kube-system").await.context("namespace kube-system can't be read")?;
        namespace.metadata.uid.context("namespace kube-system has no uid")
    }

    async fn run(self, feed: Feed) -> anyhow::Result<()> {
        let mut kinds = JoinSet::new();
        kinds.spawn(watch::run::<Node>(self.client.clone(), feed.clone()));
        kinds.spawn(watch::run::<Namespace>(self.client.clone(), feed.clone()));
        kinds.spawn(watch::run::<ServiceCIDR>(self.client.clone(), feed.clone()));
        kinds.spawn(watch::run::<Service>(self.client.clone(), feed.clone()));
        kinds.spawn(watch::run::<EndpointSlice>(self.client.clone(), feed.clone()));
        kinds.spawn(watch::run::<Pod>(self.client.clone(), feed));
        match kinds.join_next().await {
            Some(Ok(Closed)) | None => Ok(()),
            // A panic: all kinds start over together, so that no kind stands still unnoticed.
            Some(Err(error)) => Err(error.into()),
        }
    }
}
