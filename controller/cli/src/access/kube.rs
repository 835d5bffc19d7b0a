//! The API server: where controllers' pods are, the CA that signs for them, and a token for whoever asks.

use anyhow::Context;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::read;
use crate::Usage;
use crate::args::Common;

/// Whose token is asked for.
const ACCOUNT: &str = "sheave-cli";

/// What the token is for, as controllers want it.
const AUDIENCE: &str = "sheave-cli";

/// As short as an API server gives them.
const TOKEN_SECONDS: i64 = 600;

/// Has the CA.
pub(crate) const CONFIG_MAP: &str = "sheave-discovery";

/// Which pods are controllers.
pub(crate) const CONTROLLERS: &str = "app.kubernetes.io/name=sheave-controller";

/// A client, and where Sheave is.
pub(crate) struct Home {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Home {
    /// By the flags, the usual places, or a pod's own account.
    ///
    /// # Errors
    /// Where there is no kubeconfig, or none that can be used.
    pub(crate) async fn open(common: &Common) -> anyhow::Result<Self> {
        let client = Client::try_from(config(common).await?).context("no client can be made for the API server")?;
        Ok(Self { client, namespace: common.namespace.clone() })
    }

    /// An API of the namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Names of the controllers' pods that run.
    ///
    /// # Errors
    /// Where there are none, or the API server doesn't say.
    pub(crate) async fn controllers(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.api::<Pod>().list(&ListParams::default().labels(CONTROLLERS)).await;
        let pods = pods.map_err(said).context("the controllers' pods can't be listed")?.items;
        let running = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        };
        let mut names: Vec<_> = pods.into_iter().filter(running).filter_map(|pod| pod.metadata.name).collect();
        names.sort();
        anyhow::ensure!(
            !names.is_empty(),
            "no controller's pod runs in namespace {}; `sheave check` says more, and `sheave --socket \
             /var/lib/sheave/admin.sock status` on a node asks its proxy",
            self.namespace
        );
        Ok(names)
    }

    /// The CA that signs for controllers, in PEM.
    pub(super) async fn authority(&self, common: &Common) -> anyhow::Result<String> {
        authority(Some(self), common).await
    }

    /// A token for this program's audience.
    pub(super) async fn token(&self, common: &Common) -> anyhow::Result<String> {
        token(Some(self), common).await
    }
}

async fn config(common: &Common) -> anyhow::Result<Config> {
    let options = KubeConfigOptions { context: common.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &common.kubeconfig {
        Some(path) => {
            let unusable = |error| Usage(format!("--kubeconfig {}: {error}", path.display()));
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)?
        }
        None if common.context.is_some() => {
            Config::from_kubeconfig(&options).await.map_err(|error| Usage(format!("--context: {error}")))?
        }
        None => Config::infer().await.map_err(|error| {
            anyhow::anyhow!(
                "no kubeconfig was found ({error}); give --kubeconfig or --controller, or on a node --socket \
                 /var/lib/sheave/admin.sock"
            )
        })?,
    };
    let patience = Some(std::time::Duration::from_secs(common.timeout));
    (config.connect_timeout, config.read_timeout, config.write_timeout) = (patience, patience, patience);
    Ok(config)
}

/// The CA of --ca-file, or of the ConfigMap.
///
/// # Errors
/// Where it can't be read.
pub(super) async fn authority(home: Option<&Home>, common: &Common) -> anyhow::Result<String> {
    if let Some(path) = &common.ca_file {
        return read("--ca-file", path);
    }
    let home = home.context("a cluster is asked where --ca-file is not given")?;
    let failed = || format!("ConfigMap {CONFIG_MAP}, which has the controllers' CA, can't be read; give --ca-file");
    let map = home.api::<ConfigMap>().get(CONFIG_MAP).await.map_err(said).with_context(failed)?;
    map.data.and_then(|mut data| data.remove("ca.crt")).with_context(failed)
}

/// The token of --token-file, or a new one.
///
/// # Errors
/// Where there is none; with what the user lacks.
pub(super) async fn token(home: Option<&Home>, common: &Common) -> anyhow::Result<String> {
    if let Some(path) = &common.token_file {
        let token = read("--token-file", path)?;
        if token.trim().is_empty() {
            return Err(Usage(format!("--token-file {}: it is empty", path.display())).into());
        }
        return Ok(token);
    }
    let home = home.context("a cluster is asked where --token-file is not given")?;
    let spec = TokenRequestSpec {
        audiences: Some(vec![AUDIENCE.to_owned()]),
        expiration_seconds: Some(TOKEN_SECONDS),
        bound_object_ref: None,
    };
    let request = TokenRequest { metadata: ObjectMeta::default(), spec: Some(spec), status: None };
    let accounts = home.api::<ServiceAccount>();
    let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await;
    let failed = || {
        format!(
            "no token of ServiceAccount {}/{ACCOUNT} can be had; it is in manifests/base, and you need `create` on its \
             `serviceaccounts/token`, or --token-file",
            home.namespace
        )
    };
    let status = answer.map_err(said).with_context(failed)?.status;
    status.and_then(|status| status.token).filter(|token| !token.is_empty()).with_context(failed)
}

/// What the API server said, without the program's own words around it.
pub(crate) fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        error => anyhow::anyhow!(super::dial::with_causes(&error)),
    }
}
