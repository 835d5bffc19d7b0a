//! One proxy's own answers, by its admin socket: what remains when no controller can be asked.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use prost::Message;
use sheave_api::proto::NodeAnswer;
use tokio::net::UnixStream;

/// The largest answer that is taken. A node's own is not bounded by what a stream carries.
const MAX_ANSWER: usize = 256 << 20;

/// Asks for a page below /operations/.
///
/// # Errors
/// Where nobody answers, or nothing that can be understood.
pub(crate) async fn ask(socket: &Path, page: &str, patience: Duration) -> anyhow::Result<NodeAnswer> {
    let asked = tokio::time::timeout(patience, exchange(socket, page)).await;
    asked.unwrap_or_else(|_| anyhow::bail!("no answer within {} s", patience.as_secs())).with_context(|| {
        format!("--socket {}: the proxy can't be asked; only root may, and only while it runs", socket.display())
    })
}

async fn exchange(socket: &Path, page: &str) -> anyhow::Result<NodeAnswer> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("/operations/{page}")).header("host", "proxy").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    anyhow::ensure!(status != 404, "it has no answers; its version is older than this program's");
    anyhow::ensure!(status == 200, "it answers {status}");
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok(NodeAnswer::decode(body)?)
}

/// A value in a query: RFC 3986's unreserved characters as they are, others as codes.
pub(crate) fn quoted(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_taken_for_more_than_a_value_is_quoted() {
        assert_eq!(quoted("a-b.c&name=ü"), "a-b.c%26name%3D%C3%BC");
    }
}
