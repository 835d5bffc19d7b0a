//! The snapshot file: `SHEAVESN`, version, header (JSON), one record per resource as it travels, an empty record, CRC-32.
//!
//! Numbers are big-endian u32. Resources are written one by one, so that saving needs memory for one, not for all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::{Buf, Bytes};
use prost::Message;
use serde::{Deserialize, Serialize};
use sheave_api::{decode_upsert, encode_resource, hash_to_bytes, name_of_key, proto};
use sheave_model::{Delta, Resource, Snapshot, View};

use super::Identity;

const MAGIC: &[u8; 8] = b"SHEAVESN";
/// Raised whenever an older program would misread the file.
const VERSION: u32 = 1;
/// The largest file that is read: far beyond 100,000 endpoints, and a bound on memory whatever lies there.
const MAX_BYTES: u64 = 256 << 20;
/// The largest header: names and a few numbers.
const MAX_HEADER: usize = 1 << 20;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("it is no snapshot")]
    Magic,
    #[error("its version is {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("it is cut off or damaged: its checksum doesn't fit")]
    Checksum,
    #[error("its header can't be read: {0}")]
    Header(#[from] serde_json::Error),
    #[error("a record in it can't be read: {0}")]
    Record(String),
    #[error("it is of node {0:?}")]
    OtherNode(String),
}

/// What stands before the resources.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) confirmed_unix_millis: u64,
    source: String,
    versions: std::collections::BTreeMap<String, u64>,
}

/// Writes a snapshot beside `path` and renames it there: whoever reads finds the old or the new one, also after a power cut.
/// Stops at the next resource where `given_up` turns true.
///
/// # Errors
/// Where it can't be written or is given up; the old one then stands.
pub(crate) fn save(
    path: &Path,
    snapshot: &Snapshot,
    identity: &Identity,
    confirmed: SystemTime,
    given_up: &AtomicBool,
) -> io::Result<()> {
    let partial: PathBuf = path.with_extension("part");
    let result = write(&partial, snapshot, identity, confirmed, given_up).and_then(|()| fs::rename(&partial, path));
    if result.is_err() {
        // Whatever is left of it helps nobody; that it can't be removed is less of a problem than what came before.
        let _ = fs::remove_file(&partial);
        return result;
    }
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn write(
    path: &Path,
    snapshot: &Snapshot,
    identity: &Identity,
    confirmed: SystemTime,
    given_up: &AtomicBool,
) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out = Summing { inner: BufWriter::with_capacity(64 << 10, file), sum: crc32fast::Hasher::new() };
    let millis = confirmed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let header = serde_json::to_vec(&Header {
        identity: identity.clone(),
        confirmed_unix_millis: u64::try_from(millis).unwrap_or(u64::MAX),
        source: snapshot.view.source.clone(),
        versions: snapshot.view.versions.clone(),
    })?;
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_be_bytes())?;
    write_record(&mut out, &header)?;
    let mut record = Vec::new();
    for resource in resources(snapshot) {
        if given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was given up"));
        }
        let encoded = encode_resource(&resource);
        let upsert = proto::Upsert {
            name: Some(name_of_key(&resource.key())),
            hash: hash_to_bytes(encoded.hash),
            resource: encoded.bytes,
        };
        record.clear();
        upsert.encode(&mut record).map_err(io::Error::other)?;
        write_record(&mut out, &record)?;
    }
    out.write_all(&0_u32.to_be_bytes())?;
    let sum = out.sum.clone().finalize();
    out.write_all(&sum.to_be_bytes())?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// In the order of [`Snapshot::to_delta`], one at a time.
fn resources(snapshot: &Snapshot) -> impl Iterator<Item = Resource> {
    let node = snapshot.node.iter().map(|(_, node)| Resource::Node((**node).clone()));
    let cluster = snapshot.cluster.iter().map(|(_, facts)| Resource::Cluster((**facts).clone()));
    let services = snapshot.services.values().map(|state| Resource::Service(state.service.clone()));
    node.chain(cluster).chain(services)
}

fn write_record(out: &mut impl Write, record: &[u8]) -> io::Result<()> {
    let length = u32::try_from(record.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(record)
}

/// Sums what passes.
struct Summing<W> {
    inner: W,
    sum: crc32fast::Hasher,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.sum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads a file; nothing where there is none.
pub(super) fn read(path: &Path) -> Result<Option<(Header, Delta)>, FormatError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FormatError::TooLarge);
    }
    parse(bytes.into()).map(Some)
}

fn parse(mut bytes: Bytes) -> Result<(Header, Delta), FormatError> {
    if bytes.len() < MAGIC.len() + 8 || !bytes.starts_with(MAGIC) {
        return Err(FormatError::Magic);
    }
    let mut sum = bytes.split_off(bytes.len() - 4);
    if crc32fast::hash(&bytes) != sum.get_u32() {
        return Err(FormatError::Checksum);
    }
    bytes.advance(MAGIC.len());
    let version = bytes.get_u32();
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let header = read_record(&mut bytes)?;
    if header.len() > MAX_HEADER {
        return Err(FormatError::Record(format!("a header of {} bytes", header.len())));
    }
    let header: Header = serde_json::from_slice(&header)?;
    let mut delta =
        Delta { view: View { source: header.source.clone(), versions: header.versions.clone() }, ..Delta::default() };
    loop {
        let record = read_record(&mut bytes)?;
        if record.is_empty() {
            break;
        }
        let upsert = proto::Upsert::decode(record).map_err(|error| FormatError::Record(error.to_string()))?;
        delta.upserts.push(decode_upsert(upsert).map_err(|refusal| FormatError::Record(refusal.error.to_string()))?);
    }
    if bytes.has_remaining() {
        return Err(FormatError::Record("there is something behind the last one".to_owned()));
    }
    Ok((header, delta))
}

fn read_record(bytes: &mut Bytes) -> Result<Bytes, FormatError> {
    let cut = || FormatError::Record("it is cut off".to_owned());
    let length = bytes.try_get_u32().map_err(|_| cut())? as usize;
    if length > bytes.len() {
        return Err(cut());
    }
    Ok(bytes.split_to(length))
}
