//! The objects at the API server: one Secret, one ConfigMap and a Lease for each replica, read and written as they are needed.
//!
//! All of them are read every few seconds rather than watched: that needs fewer rights and no state, and a change that somebody
//! else made is put right in the same way as one that was never made.

use std::net::SocketAddr;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Client, Error};

use super::directory::Directory;
use super::keys::Keys;
use super::replicas::{self, Acknowledged};

/// Holds the CA and its key.
const SECRET: &str = "sheave-ca";

/// What kubelets mount for proxies.
const CONFIG_MAP: &str = "sheave-discovery";

/// The three kinds in the controller's namespace.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    leases: Api<Lease>,
}

/// Whether a write was done, or somebody else's came before it. The next round looks again.
fn unless_overtaken<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(()),
        result => result.map(drop),
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

impl Objects {
    pub(super) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client.clone(), namespace),
        }
    }

    /// The Leases of all replicas.
    pub(super) async fn leases(&self) -> anyhow::Result<Vec<Lease>> {
        let params = ListParams::default().labels(&replicas::selector());
        Ok(self.leases.list(&params).await.context("Leases can't be listed")?.items)
    }

    /// Writes this replica's own Lease.
    pub(super) async fn announce(
        &self,
        address: SocketAddr,
        old: Option<&Lease>,
        acknowledged: Option<&Acknowledged>,
    ) -> anyhow::Result<()> {
        let (name, params) = (replicas::lease_name(address), PostParams::default());
        let lease = replicas::lease(address, old, acknowledged, Timestamp::now());
        let written = match old {
            Some(_) => self.leases.replace(&name, &params, &lease).await,
            None => self.leases.create(&params, &lease).await,
        };
        unless_overtaken(written).with_context(|| format!("Lease {name} can't be written"))
    }

    /// Takes a Lease away; one that isn't there is fine.
    pub(super) async fn forget(&self, name: &str) -> anyhow::Result<()> {
        match self.leases.delete(name, &DeleteParams::default()).await {
            Err(Error::Api(status)) if status.is_not_found() => Ok(()),
            result => result.map(drop).with_context(|| format!("Lease {name} can't be deleted")),
        }
    }

    /// The Secret, where there is one.
    pub(super) async fn secret(&self) -> anyhow::Result<Option<Secret>> {
        self.secrets.get_opt(SECRET).await.with_context(|| format!("Secret {SECRET} can't be read"))
    }

    /// Writes keys into the Secret. Returns whether they are there now.
    pub(super) async fn write_secret(&self, old: Option<&Secret>, keys: &Keys) -> anyhow::Result<bool> {
        let params = PostParams::default();
        let written = match old {
            Some(old) => {
                let secret = Secret { data: Some(keys.to_data()), string_data: None, ..old.clone() };
                self.secrets.replace(SECRET, &params, &secret).await
            }
            None => {
                let secret = Secret { metadata: named(SECRET), data: Some(keys.to_data()), ..Secret::default() };
                self.secrets.create(&params, &secret).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error).with_context(|| format!("Secret {SECRET} can't be written")),
        }
    }

    /// Makes the ConfigMap say what the directory says. Returns whether it said something else.
    pub(super) async fn publish(&self, directory: &Directory) -> anyhow::Result<bool> {
        let failed = || format!("ConfigMap {CONFIG_MAP} can't be written");
        let old = self.config_maps.get_opt(CONFIG_MAP).await;
        let old = old.with_context(|| format!("ConfigMap {CONFIG_MAP} can't be read"))?;
        let (data, params) = (Some(directory.to_data()), PostParams::default());
        let written = match old {
            Some(old) if old.data == data => return Ok(false),
            Some(old) => self.config_maps.replace(CONFIG_MAP, &params, &ConfigMap { data, ..old }).await,
            None => {
                let new = ConfigMap { metadata: named(CONFIG_MAP), data, ..ConfigMap::default() };
                self.config_maps.create(&params, &new).await
            }
        };
        unless_overtaken(written).with_context(failed)?;
        Ok(true)
    }
}
