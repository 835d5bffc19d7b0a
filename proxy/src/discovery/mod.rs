//! The client of the controller's stream: finds a replica, says what this node holds, takes what is new into the store and
//! acknowledges it once the data paths have it.
//!
//! Losing the controller stops nothing: the store keeps its last snapshot, and this task looks for a replica for ever.

mod acks;
mod dial;
mod refuse;
mod rotation;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use tokio::sync::watch;

use crate::config::Endpoint;
use crate::metrics::Metrics;
use crate::status::Status;
use crate::store::StoreHandle;
use crate::supervise::Shutdown;
use rotation::{Rotation, Turn};
use stream::{End, Stream};

/// What the task needs.
#[derive(Clone)]
pub(crate) struct Client {
    /// This node's name, as its certificate says it.
    pub(crate) node: String,
    /// Replicas, in the order of preference.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Certificates for TLS endpoints, read anew for each connection.
    pub(crate) tls_dir: Option<PathBuf>,
    pub(crate) store: StoreHandle,
    /// The revision that every data path has.
    pub(crate) programmed: watch::Receiver<u64>,
    pub(crate) metrics: Metrics,
    pub(crate) status: Status,
    pub(crate) shutdown: Shutdown,
}

impl Client {
    /// Keeps a stream to some replica until everything stops.
    pub(crate) async fn run(self) {
        let mut rotation = Rotation::new(self.endpoints.len());
        let mut first = true;
        let mut told = vec![None; self.endpoints.len()];
        while !self.shutdown.is_stopped() {
            let turn = rotation.next();
            if !turn.pause.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(turn.pause) => {}
                    _ = self.shutdown.stopped() => return,
                }
            }
            if !std::mem::take(&mut first) {
                self.metrics.stream_reconnects.inc();
            }
            let endpoint = &self.endpoints[turn.index];
            let end = tokio::select! {
                end = self.one_stream(endpoint, turn) => end,
                _ = self.shutdown.stopped() => return,
            };
            rotation.ended(turn.index, &end);
            // A controller that stays away is told once, not at every try.
            if told[turn.index].as_ref() == Some(&end) {
                tracing::debug!(controller = %endpoint, %end, "again no stream");
            } else {
                tracing::warn!(controller = %endpoint, %end, "no stream; what was received goes on being served");
                told[turn.index] = Some(end);
            }
        }
    }

    async fn one_stream(&self, endpoint: &Endpoint, turn: Turn) -> End {
        let channel = match dial::dial(endpoint, self.tls_dir.as_deref()).await {
            Ok(channel) => channel,
            Err(error) => return End::Unreachable(format!("{error:#}")),
        };
        let mut stream = Stream::new(self, endpoint.to_string(), turn);
        let end = stream.run(channel).await;
        self.metrics.stream_connected.set(0);
        self.metrics.acks_pending.set(0);
        self.status.update(|state| state.controller = None);
        // The next Hello must name all that was handed to the store, or a removal in between would never be told.
        stream.settle().await;
        end
    }
}
