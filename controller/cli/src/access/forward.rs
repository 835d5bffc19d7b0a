//! A port-forward to a pod, as `kubectl port-forward` has it: a WebSocket to the API server, on which each message begins with
//! the number of its channel (`v4.channel.k8s.io`). Channel 0 is data, 1 is errors; each begins with the port, in two bytes.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use super::websocket::{self, Frame};

const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERRORS: u8 = 1;

/// Bytes that may wait on either way.
const BUFFER: usize = 64 << 10;

/// Bytes of one message: what kubelets themselves send.
const PART: usize = 32 << 10;

/// Opens one; what is written to it reaches the pod's port.
///
/// # Errors
/// What the API server or the kubelet said.
pub(super) async fn open(client: &Client, namespace: &str, pod: &str, port: u16) -> anyhow::Result<DuplexStream> {
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let request = Request::get(format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}"))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(Body::empty())?;
    let failed =
        || format!("no port-forward to pod {namespace}/{pod}; it needs `get` and `create` on `pods/portforward`");
    let response = client.send(request).await.map_err(super::kube::said).with_context(failed)?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = response.into_body().collect_bytes().await.unwrap_or_default();
        let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let said = said.and_then(|said| Some(said.get("message")?.as_str()?.to_owned()));
        return Err(anyhow::anyhow!(said.unwrap_or_else(|| status.to_string())).context(failed()));
    }
    let upgraded = hyper::upgrade::on(response).await.with_context(failed)?;
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
    let mut bytes = Vec::new();
    // The port comes first on both channels; an error may come in its place.
    let mut announced = [false; 2];
    while announced != [true; 2] {
        match next(&mut reader, &mut bytes).await?.context("it was closed at once").with_context(failed)? {
            Frame::Data(message) => match message.split_first() {
                Some((&channel @ (DATA | ERRORS), said)) if !announced[usize::from(channel)] && said.len() == 2 => {
                    announced[usize::from(channel)] = true;
                }
                Some((&ERRORS, said)) => {
                    return Err(anyhow::anyhow!("{}", String::from_utf8_lossy(said)).context(failed()));
                }
                _ => anyhow::bail!("a message of an unknown channel came"),
            },
            Frame::Ping(data) => writer.write_all(&websocket::pong(&data, rand::random())).await?,
            Frame::Close => anyhow::bail!("{}: it was closed at once", failed()),
        }
    }
    tokio::spawn(carry(theirs, reader, writer, bytes));
    Ok(ours)
}

/// The next frame; nothing at the end.
async fn next(reader: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> anyhow::Result<Option<Frame>> {
    loop {
        if let Some(frame) = websocket::take(bytes).map_err(|broken| anyhow::anyhow!("{}", broken.0))? {
            return Ok(Some(frame));
        }
        if reader.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// Carries both ways until one end has closed.
async fn carry(
    stream: DuplexStream,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    mut bytes: Vec<u8>,
) -> anyhow::Result<()> {
    let (mut outgoing, mut incoming) = tokio::io::split(stream);
    let mut part = vec![0; PART];
    loop {
        // Both are cancel-safe: what was read stays in `bytes`, and a read takes nothing or all that it says.
        tokio::select! {
            length = outgoing.read(&mut part) => {
                let length = length?;
                if length == 0 {
                    return Ok(());
                }
                let message = [&[DATA], &part[..length]].concat();
                writer.write_all(&websocket::binary(&message, rand::random())).await?;
                writer.flush().await?;
            }
            frame = next(&mut reader, &mut bytes) => match frame? {
                Some(Frame::Data(message)) => match message.split_first() {
                    Some((&DATA, data)) => incoming.write_all(data).await?,
                    // The pod's port refused, or the kubelet gave up: the connection ends.
                    _ => return Ok(()),
                },
                Some(Frame::Ping(data)) => writer.write_all(&websocket::pong(&data, rand::random())).await?,
                Some(Frame::Close) | None => return Ok(()),
            },
        }
    }
}
