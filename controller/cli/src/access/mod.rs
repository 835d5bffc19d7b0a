//! Whom to ask, and the way there: controllers by port-forward, address or unix socket, or one proxy by its own socket.
//!
//! The user's own credentials go to the API server only. What a controller gets is a short-lived token for an audience of its
//! own, and only after its certificate was verified.

mod dial;
mod forward;
pub(crate) mod kube;
pub(crate) mod socket;
mod websocket;

use std::time::Duration;

use anyhow::Context;
use sheave_api::proto::operations_client::OperationsClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use self::dial::Proof;
use crate::Usage;
use crate::args::{Common, Endpoint};

/// The largest message that is taken: an overview of a large cluster.
const MAX_MESSAGE: usize = 64 << 20;

/// One replica that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// As reports name it: its pod, or its address.
    pub(crate) name: String,
    /// The way to it, or why there is none.
    pub(crate) channel: Result<Channel, String>,
    token: Option<MetadataValue<Ascii>>,
    patience: Duration,
}

impl Replica {
    /// One that nobody can be asked.
    #[cfg(test)]
    pub(crate) fn unreachable(name: &str) -> Self {
        let (channel, patience) = (Err("there is no way to it".to_owned()), Duration::from_secs(1));
        Self { name: name.to_owned(), channel, token: None, patience }
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Result<OperationsClient<Channel>, String> {
        Ok(OperationsClient::new(self.channel.clone()?).max_decoding_message_size(MAX_MESSAGE))
    }

    /// An answer, all of it, unless it takes too long.
    pub(crate) async fn within<T>(&self, answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let answered = tokio::time::timeout(self.patience, answer).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {} s", self.patience.as_secs())))
    }

    /// A request with all that it needs.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        // What a replica does for nobody any more it may leave; the answer itself is bounded by `within`.
        request.set_timeout(self.patience);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }
}

/// Every replica that the flags, or the cluster, name.
///
/// # Errors
/// Where nobody could be found, or no proof of who asks; with the remedy.
pub(crate) async fn replicas(common: &Common) -> anyhow::Result<Vec<Replica>> {
    let patience = Duration::from_secs(common.timeout);
    if common.controller.is_empty() {
        let home = kube::Home::open(common).await?;
        let pods = home.controllers().await?;
        let proof = Proof::Token(home.authority(common).await?);
        let token = Some(bearer(&home.token(common).await?)?);
        let dialled = pods.into_iter().map(|pod| {
            let (proof, token, client) = (&proof, token.clone(), &home);
            async move {
                let channel = dial::forwarded(client, &pod, proof, patience).await;
                let channel = channel.map_err(|error| format!("{error:#}"));
                Replica { name: pod, channel, token, patience }
            }
        });
        return Ok(futures::future::join_all(dialled).await);
    }
    let by_address = common.controller.iter().any(|endpoint| matches!(endpoint, Endpoint::Tcp(_)));
    let (proof, token) = match (&common.tls_dir, by_address) {
        (_, false) => (Proof::None, None),
        (Some(dir), true) => (Proof::Certificate(dir.clone()), None),
        (None, true) => {
            // A cluster is only asked for what the flags don't give.
            let home = if common.token_file.is_none() || common.ca_file.is_none() {
                Some(kube::Home::open(common).await?)
            } else {
                None
            };
            let authority = kube::authority(home.as_ref(), common).await?;
            (Proof::Token(authority), Some(bearer(&kube::token(home.as_ref(), common).await?)?))
        }
    };
    let dialled = common.controller.iter().map(|endpoint| {
        let (proof, token) = (&proof, token.clone());
        async move {
            let name = match endpoint {
                Endpoint::Tcp(address) => address.to_string(),
                Endpoint::Unix(path) => format!("unix:{}", path.display()),
            };
            let channel = dial::direct(endpoint, proof, patience).await.map_err(|error| format!("{error:#}"));
            let token = token.filter(|_| matches!(endpoint, Endpoint::Tcp(_)));
            Replica { name, channel, token, patience }
        }
    });
    Ok(futures::future::join_all(dialled).await)
}

fn bearer(token: &str) -> anyhow::Result<MetadataValue<Ascii>> {
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| Usage("the token has characters that no token has; see --token-file".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A file that a flag names.
fn read(flag: &str, path: &std::path::Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{flag} {}: can't be read", path.display()))
}
