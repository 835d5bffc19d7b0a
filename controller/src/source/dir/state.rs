//! What a folder's controller must remember: its id, the versions it has given out, and each Service's age and addresses.
//! One small file, written whole and atomically before anything that depends on it is told.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of the format, and the first word of the file's first line; the CRC-32 of the rest follows it.
const HEADER: &str = "sheave-folder-state-v1";
const FILE: &str = "folder-state.json";
/// Versions are promised to the file in blocks, so that it isn't written for each of them.
const BLOCK: u64 = 1 << 16;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Id of this folder's history; a new one where the history is lost.
    pub(super) source: String,
    /// Versions above this one were never given out.
    pub(super) promised: u64,
    /// By `namespace/name`.
    pub(super) services: BTreeMap<String, Record>,
    /// The version given out last.
    #[serde(skip)]
    pub(super) version: u64,
    /// Differs from what the file holds.
    #[serde(skip)]
    pub(super) changed: bool,
}

/// What is remembered of a Service until it is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `metadata.uid` where one is written; another uid is another Service.
    pub(super) uid: Option<String>,
    /// First seen, in seconds since 1970.
    pub(super) created: i64,
    /// Its ClusterIPs, in the order of its families.
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Its NodePorts, by protocol and port such as `TCP/80`.
    pub(super) node_ports: BTreeMap<String, u16>,
}

impl State {
    /// A history that begins now.
    pub(super) fn new(source: String) -> Self {
        Self { source, promised: 0, services: BTreeMap::new(), version: 0, changed: true }
    }

    /// The next version: above every one that was given out before, restarts included.
    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        if self.version > self.promised {
            self.promised = self.version + BLOCK;
            self.changed = true;
        }
        self.version
    }

    /// The text of the file.
    pub(super) fn encode(&self) -> String {
        let body = serde_json::to_string(self).expect("the state is written, because its map has strings for keys");
        format!("{HEADER} {:08x}\n{body}\n", crc32fast::hash(body.as_bytes()))
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(text: &str) -> Result<Self, String> {
        let (head, body) = text.split_once('\n').ok_or("it has no first line")?;
        let body = body.trim_end_matches('\n');
        let sum = head.strip_prefix(HEADER).ok_or_else(|| format!("its first line is not {HEADER}"))?.trim();
        if u32::from_str_radix(sum, 16) != Ok(crc32fast::hash(body.as_bytes())) {
            return Err("its checksum is wrong".into());
        }
        let mut state: Self = serde_json::from_str(body).map_err(|error| error.to_string())?;
        state.version = state.promised;
        Ok(state)
    }
}

/// The file that keeps a [`State`].
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    folder: PathBuf,
}

impl StateFile {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The state that was saved, or a new one. A file that is damaged is set aside, and the line says so.
    ///
    /// # Errors
    /// When the file is there and can't be read.
    pub(super) fn load(&self, new_id: impl FnOnce() -> String) -> io::Result<(State, Option<String>)> {
        let path = self.folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((State::new(new_id()), None)),
            Err(error) => return Err(error),
        };
        match State::decode(&text) {
            Ok(state) => Ok((state, None)),
            Err(why) => {
                let aside = self.folder.join(format!("{FILE}.damaged"));
                fs::rename(&path, &aside)?;
                let line = format!(
                    "{} is damaged ({why}) and was set aside as {}; addresses are assigned anew, restore a backup to keep them",
                    path.display(),
                    aside.display()
                );
                Ok((State::new(new_id()), Some(line)))
            }
        }
    }

    /// Saves the state: the file holds either the old or the new one, whatever happens.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn save(&self, state: &mut State) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let part = self.folder.join(format!("{FILE}.part"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(state.encode().as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, self.folder.join(FILE))?;
        File::open(&self.folder)?.sync_all()?;
        state.changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_state_comes_back_and_versions_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path());
        let (mut state, line) = file.load(|| "id".into()).unwrap();
        assert_eq!(line, None);
        state.services.insert("a/b".into(), Record { created: 7, ..Record::default() });
        let last = (0..10).map(|_| state.next_version()).max().unwrap();
        file.save(&mut state).unwrap();
        let (mut again, line) = file.load(|| "other".into()).unwrap();
        assert_eq!((again.source.as_str(), again.services["a/b"].created, line), ("id", 7, None));
        assert!(again.next_version() > last);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_a_new_history_begins() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path());
        let mut state = State::new("id".into());
        file.save(&mut state).unwrap();
        let path = folder.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let (state, line) = file.load(|| "new".into()).unwrap();
            assert_eq!(state.source, "new", "byte {at} was damaged");
            assert!(line.unwrap().contains("set aside"));
            assert!(!path.exists() && folder.path().join("folder-state.json.damaged").exists());
        }
    }
}
