//! The last stream's word on replicas and CAs, kept in the state folder beside the snapshot: a mounted ConfigMap can lag by more
//! than a minute, and after a change of every address it would be all that a node has.
//!
//! One line `sheave-directory VERSION CRC-32`, then JSON. A file that can't be right is set aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::sync::watch;

use super::directory::Directory;
use crate::disk::RETRY;
use crate::metrics::Metrics;
use crate::supervise::Shutdown;

const MAGIC: &str = "sheave-directory";
/// Raised whenever an older program would misread the file.
const VERSION: u32 = 1;

/// Reads the file, where there is one. One that is damaged is renamed to `.damaged` and said so in one line.
pub(super) fn load(path: &Path) -> Option<Directory> {
    let error = match fs::read_to_string(path) {
        Ok(text) => match parse(&text) {
            Ok(directory) => return Some(directory),
            Err(error) => error,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    let aside = path.with_extension("damaged");
    let renamed = fs::rename(path, &aside);
    tracing::warn!(
        file = %path.display(), error, set_aside = renamed.is_ok(),
        "the remembered replicas can't be used and are set aside as {}; --discovery-dir and --controller say where to go",
        aside.display(),
    );
    None
}

fn parse(text: &str) -> Result<Directory, String> {
    let (head, body) = text.split_once('\n').ok_or("it is cut off")?;
    let words: Vec<_> = head.split(' ').collect();
    let [MAGIC, version, sum] = words[..] else { return Err("it is no list of replicas".to_owned()) };
    if version != VERSION.to_string() {
        return Err(format!("its version is {version}, this program reads {VERSION}"));
    }
    if sum != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
        return Err("it is cut off or damaged: its checksum doesn't fit".to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

/// Saves the newest word whenever one has come, until everything stops. One that can't be saved is tried again, as a snapshot is.
pub(super) async fn keep(path: &Path, mut words: watch::Receiver<Directory>, metrics: &Metrics, shutdown: &Shutdown) {
    loop {
        let word = words.borrow_and_update().clone();
        let saved = word.controllers.is_empty() || save_anew(path, word, metrics).await;
        tokio::select! {
            biased; // what has come is saved, and then everything may stop
            changed = words.changed() => if changed.is_err() { return },
            _ = shutdown.stopped() => return,
            () = tokio::time::sleep(RETRY), if !saved => {}
        }
    }
}

/// Saves a word that the file doesn't hold; returns whether it does now.
async fn save_anew(path: &Path, word: Directory, metrics: &Metrics) -> bool {
    let file = path.to_owned();
    let work = move || if load(&file).as_ref() == Some(&word) { Ok(()) } else { save(&file, &word) };
    let saved = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
    if let Err(error) = &saved {
        // This process trusts it all the same, and the next one finds the ConfigMap that its kubelet mounts at its start.
        metrics.disk_errors.inc();
        tracing::warn!(file = %path.display(), %error, "replicas and CAs can't be saved; is the disk full?");
    }
    saved.is_ok()
}

/// Writes beside the file and renames: whoever reads finds the old one or the new one, also after a power cut.
///
/// # Errors
/// Where it can't be written; the old one then stands.
fn save(path: &Path, directory: &Directory) -> io::Result<()> {
    let body = serde_json::to_string(directory)?;
    let text = format!("{MAGIC} {VERSION} {:08x}\n{body}", crc32fast::hash(body.as_bytes()));
    let partial = path.with_extension("part");
    let written = write(&partial, &text).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // Whatever is left of it helps nobody; that it can't be removed is less of a problem than what came before.
        let _ = fs::remove_file(&partial);
        return written;
    }
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Stop;
    use std::os::unix::fs::PermissionsExt;

    fn directory() -> Directory {
        Directory { controllers: vec!["10.0.0.1:15010".parse().unwrap()], ca: super::super::directory::tests::ca() }
    }

    #[test]
    fn what_was_saved_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("discovery");
        assert_eq!(load(&path), None, "no file is no error");
        for _ in 0..2 {
            save(&path, &directory()).unwrap();
        }
        assert!(load(&path).is_some_and(|read| read.controllers == directory().controllers));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn any_damage_is_noticed_and_the_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("discovery");
        save(&path, &directory()).unwrap();
        let good = fs::read(&path).unwrap();
        let cut = (0..good.len()).step_by(11).map(|end| good[..end].to_vec());
        let flipped = (0..good.len()).step_by(3).map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            bad
        });
        let other = String::from_utf8(good.clone()).unwrap().replacen(" 1 ", " 2 ", 1).into_bytes();
        for bad in cut.chain(flipped).chain([other]) {
            fs::write(&path, &bad).unwrap();
            assert_eq!(load(&path), None);
            assert!(!path.exists());
            assert_eq!(fs::read(folder.path().join("discovery.damaged")).unwrap(), bad);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_word_is_saved_and_one_that_cannot_be_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not there yet").join("discovery");
        let (metrics, shutdown, words) =
            (Metrics::new().unwrap(), Shutdown::new(), watch::Sender::new(Directory::default()));
        let (kept, counted, following, until) = (path.clone(), metrics.clone(), words.subscribe(), shutdown.clone());
        let task = tokio::spawn(async move { keep(&kept, following, &counted, &until).await });
        tokio::time::sleep(RETRY * 3).await;
        assert_eq!(metrics.disk_errors.get(), 0, "nothing has come yet");
        words.send_replace(directory());
        tokio::time::sleep(RETRY * 3).await;
        assert!((2..=4).contains(&metrics.disk_errors.get()), "{}", metrics.disk_errors.get());
        fs::create_dir(path.parent().unwrap()).unwrap();
        tokio::time::sleep(RETRY * 2).await;
        assert_eq!(load(&path), Some(words.borrow().clone()));
        // What somebody takes away stays away until there is something to say.
        fs::remove_file(&path).unwrap();
        tokio::time::sleep(RETRY * 2).await;
        assert!(!path.exists());
        words.send_replace(directory());
        let newest = Directory { controllers: vec!["10.0.0.2:15010".parse().unwrap()], ..directory() };
        words.send_replace(newest.clone());
        shutdown.stop(Stop::Asked);
        task.await.unwrap();
        assert_eq!(load(&path), Some(newest));
    }
}
