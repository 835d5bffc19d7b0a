//! Starting, restarting, refusing and cleaning.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use sheave_loader::{Error, Loader, clean};
use sheave_model::{Protocol, ServiceKey};
use sheave_reconcile::MapError;

use super::world::{inside, join, service};

#[test]
fn the_verifier_takes_every_program_and_probing_leaves_nothing() {
    inside("life::the_verifier_takes_every_program_and_probing_leaves_nothing", |world| {
        Loader::probe(&world.options)?;
        assert!(!world.options.bpffs.join("sheave").exists());
        Ok(())
    });
}

#[test]
fn what_is_in_the_kernel_serves_on_and_is_adopted() {
    inside("life::what_is_in_the_kernel_serves_on_and_is_adopted", |world| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut node = world.node()?;
        let snapshot = world.put(service("10.96.0.1", 80, Protocol::Tcp, &[listener.local_addr()?]));
        node.update(&snapshot);
        let connection = TcpStream::connect("10.96.0.1:80")?;
        let before = (node.loader.restored()?, links(&world.options.bpffs)?);
        drop(node);

        TcpStream::connect("10.96.0.1:80")?;
        let mut node = world.node()?;
        assert_eq!(connection.peer_addr()?.to_string(), "10.96.0.1:80", "the new programs know the old sockets");
        TcpStream::connect("10.96.0.1:80")?;
        let after = links(&world.options.bpffs)?;
        assert_eq!(after.keys().collect::<Vec<_>>(), before.1.keys().collect::<Vec<_>>());
        for (program, (link, id)) in &after {
            assert_eq!(*link, before.1[program].0, "{program} is attached by the same link");
            assert_ne!(*id, before.1[program].1, "{program} is a new program");
        }
        assert_eq!(node.update(&snapshot).writes, 0);
        let rows = node.loader.restored()?;
        assert_eq!(
            (&rows.frontends, &rows.slots, &rows.backends),
            (&before.0.frontends, &before.0.slots, &before.0.backends)
        );
        assert_eq!(node.connections(), 3);
        Ok(())
    });
}

/// Link and program ids of each pinned link, by name.
fn links(bpffs: &Path) -> Result<BTreeMap<String, (u32, u32)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(bpffs.join("sheave/v1/links"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let link = aya::programs::links::FdLink::from(aya::programs::links::PinnedLink::from_pin(&path)?);
        let info = link.info()?;
        found.insert(name, (info.id(), info.program_id()));
    }
    Ok(found)
}

#[test]
fn a_cgroup_made_anew_is_attached_to() {
    inside("life::a_cgroup_made_anew_is_attached_to", |world| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let snapshot = world.put(service("10.96.0.1", 80, Protocol::Tcp, &[listener.local_addr()?]));
        world.node()?.update(&snapshot);
        let other = world.cgroup().join("other");
        fs::create_dir(&other)?;
        let parent = std::mem::replace(&mut world.options.cgroup, other.clone());
        world.node()?;
        // The kernel frees a link whose pin is gone on a worker of its own.
        let deadline = Instant::now() + Duration::from_secs(5);
        while TcpStream::connect("10.96.0.1:80").is_ok() {
            assert!(Instant::now() < deadline, "the parent is hooked no more");
            thread::yield_now();
        }
        join(&other)?;
        TcpStream::connect("10.96.0.1:80")?;
        join(&parent)?;
        fs::remove_dir(&other)?;
        fs::create_dir(&other)?;
        join(&other)?;
        assert!(TcpStream::connect("10.96.0.1:80").is_err());
        world.node()?;
        TcpStream::connect("10.96.0.1:80")?;
        join(&parent)?;
        fs::remove_dir(&other)?;
        Ok(())
    });
}

#[test]
fn cleaning_leaves_nothing() {
    inside("life::cleaning_leaves_nothing", |world| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut node = world.node()?;
        node.update(&world.put(service("10.96.0.1", 80, Protocol::Tcp, &[listener.local_addr()?])));
        TcpStream::connect("10.96.0.1:80")?;
        clean(&world.options.bpffs)?;
        assert!(TcpStream::connect("10.96.0.1:80").is_err(), "detached, though the maps are still held");
        assert!(!world.options.bpffs.join("sheave").exists());
        clean(&world.options.bpffs)?;
        Ok(())
    });
}

#[test]
fn what_can_not_work_is_refused_with_one_line() {
    inside("life::what_can_not_work_is_refused_with_one_line", |world| {
        let good = world.options.clone();
        let refused = |options: &sheave_loader::Options| {
            let (probe, open) = (Loader::probe(options), Loader::open(options));
            let Err(error) = open else { panic!("{options:?} was not refused") };
            assert_eq!(error.to_string().lines().count(), 1);
            (probe.is_err(), error)
        };
        let mut options = good.clone();
        options.bpffs = "/proc".into();
        assert!(matches!(refused(&options), (true, Error::NotBpffs { .. })));
        let mut options = good.clone();
        options.cgroup = "/proc".into();
        assert!(matches!(refused(&options), (true, Error::NotCgroup2 { .. })));
        fs::create_dir_all(good.bpffs.join("sheave/v999"))?;
        assert!(matches!(refused(&good), (false, Error::OtherVersion { .. })));
        clean(&good.bpffs)?;
        Loader::open(&good)?;
        Ok(())
    });
}

#[test]
fn a_full_map_is_told_from_other_errors_and_sizes_are_adopted() {
    inside("life::a_full_map_is_told_from_other_errors_and_sizes_are_adopted", |world| {
        world.options.sizes.slots = 2;
        let place = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let mut node = world.node()?;
        world.put(service("10.96.0.2", 80, Protocol::Tcp, &[place(1)]));
        let report = node.update(&world.put(service("10.96.0.1", 80, Protocol::Tcp, &[place(1), place(2), place(3)])));
        assert_eq!(report.failures.len(), 1);
        assert_eq!(report.failures[0].service, Some(ServiceKey::new("test", "10.96.0.1-80-TCP")));
        assert_eq!(report.failures[0].error, MapError::Full { map: "slots", capacity: 2 });
        world.options.sizes.slots = 1000;
        let node = world.node()?;
        let fill = node.loader.fill(&node.reconciler.usage());
        let slots = fill.iter().find(|fill| fill.map == "slots").unwrap();
        assert_eq!((slots.entries, slots.capacity), (1, 2));
        Ok(())
    });
}
