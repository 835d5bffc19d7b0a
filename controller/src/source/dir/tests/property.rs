//! Any sequence of writes ends where reading the last of them alone would, and no two Services are given one address.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write(String, Vec<String>),
    Remove(String),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let path = "[a-c]\\.yaml";
    let spec = prop_oneof![
        Just(String::new()),
        Just("  type: NodePort\n".to_owned()),
        Just("  ipFamilyPolicy: PreferDualStack\n".to_owned()),
        Just("  clusterIP: None\n".to_owned()),
    ];
    let document = ("s[0-9]", spec).prop_map(|(name, spec)| service(&name, &spec));
    let documents = prop::collection::vec(document, 0..4);
    prop_oneof![
        6 => (path, documents).prop_map(|(path, documents)| Step::Write(path, documents)),
        2 => path.prop_map(Step::Remove),
        1 => Just(Step::Restart),
    ]
}

fn assigned(world: &World) -> Vec<String> {
    let services = world.listed().into_values().filter_map(|object| match object.facts {
        Facts::Service(facts) => Some(facts),
        _ => None,
    });
    let texts = services.flat_map(|facts| {
        let ips = facts.service.cluster_ips.iter().map(ToString::to_string);
        let ports = facts.service.ports.iter().filter_map(|port| port.node_port.map(|port| port.to_string()));
        ips.chain(ports).collect::<Vec<_>>()
    });
    texts.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_ends_where_its_last_files_alone_would(steps in prop::collection::vec(any_step(), 1..25)) {
        let mut world = World::new();
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(path, documents) => {
                    let text = documents.concat();
                    world.write(&path, &text);
                    files.insert(path, text);
                }
                Step::Remove(path) => {
                    world.remove(&path);
                    files.remove(&path);
                }
                Step::Restart => {
                    let before = world.listed();
                    let state = State::decode(&world.desk.state.encode()).unwrap();
                    world = World::with(state, &["10.96.0.0/16", "fd96::/112"]);
                    let mut touched = BTreeSet::new();
                    for (path, text) in &files {
                        touched.append(&mut world.folder.update(path, Content::Bytes(text.clone().into())));
                    }
                    world.take(&touched);
                    world.desk.forget_absent(&world.folder);
                    let after = world.listed();
                    prop_assert!(before.keys().eq(after.keys()));
                    for (key, object) in &after {
                        prop_assert_eq!(&object.facts, &before[key].facts, "{} after a restart", key);
                    }
                }
            }
            let assigned = assigned(&world);
            prop_assert_eq!(assigned.iter().collect::<BTreeSet<_>>().len(), assigned.len(), "{:?}", assigned);
        }
        let mut fresh = World::new();
        for (path, text) in &files {
            fresh.write(path, text);
        }
        let keys = |world: &World| world.listed().into_keys().collect::<Vec<_>>();
        prop_assert_eq!(keys(&world), keys(&fresh));
        prop_assert_eq!(world.faults(), fresh.faults());
        // What the events told is what a list tells.
        let told: BTreeSet<_> = world.index.keys().into_iter().collect();
        let mut relisted = Index::default();
        for object in world.listed().into_values() {
            relisted.apply(object);
        }
        for key in relisted.keys() {
            prop_assert!(told.contains(&key) || key == ResourceKey::Cluster);
            if key != ResourceKey::Cluster {
                prop_assert_eq!(world.index.compute(&key), relisted.compute(&key));
            }
        }
        let records: BTreeSet<String> = world.desk.state.services.keys().cloned().collect();
        let services: BTreeSet<String> = world.listed().into_keys().filter(|key| key.kind == Kind::Service)
            .map(|key| format!("{}/{}", key.namespace, key.name)).collect();
        prop_assert_eq!(records, services, "what is remembered is what there is");
    }
}
