//! Looks at a folder of which a part can't be looked at.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::source::dir::keeper::{Keeper, Look};
use crate::source::dir::state::StateFile;
use crate::source::dir::watch::Changes;

fn look(keeper: &mut Keeper) -> Look {
    keeper.look(&Changes { everything: true, ..Changes::default() }, 1_000)
}

fn deleted(look: &Look) -> usize {
    look.events.iter().filter(|event| matches!(event, Event::Delete(_))).count()
}

/// A link to itself is there and can't be looked at, even by root.
#[test]
fn what_cannot_be_looked_at_is_not_gone() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (part, away) = (root.path().join("part"), state.path().join("away"));
    fs::create_dir_all(part.join("deep")).unwrap();
    fs::write(part.join("deep/a.yaml"), service("a", "")).unwrap();
    fs::write(root.path().join("b.yaml"), service("b", "")).unwrap();
    fs::write(root.path().join("party.yaml"), service("c", "")).unwrap();
    let World { desk, .. } = World::new();
    let mut keeper = Keeper::new(root.path(), desk, StateFile::new(state.path()));
    look(&mut keeper);
    assert_eq!(keeper.len(), 3);

    fs::rename(&part, &away).unwrap();
    symlink("part", &part).unwrap();
    fs::remove_file(root.path().join("party.yaml")).unwrap();
    let blind = look(&mut keeper);
    assert_eq!((deleted(&blind), keeper.len()), (1, 2), "{:?}", blind.events);
    let news: Vec<String> = blind.news.iter().map(ToString::to_string).collect();
    assert!(news.len() == 1 && news[0].contains("part") && news[0].contains("can't be looked at"), "{news:?}");
    assert!(look(&mut keeper).events.is_empty(), "it is said once");

    fs::remove_file(&part).unwrap();
    let gone = look(&mut keeper);
    assert_eq!((deleted(&gone), keeper.len()), (1, 1), "now it is really gone");
    assert!(gone.events.contains(&Event::Problems(Vec::new())), "{:?}", gone.events);
}
