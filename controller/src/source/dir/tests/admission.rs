//! The API server's part: families, ClusterIPs, NodePorts, ages and versions.

use super::*;

/// What a controller that starts again knows.
fn restarted(world: &World) -> State {
    State::decode(&world.desk.state.encode()).unwrap()
}

#[test]
fn families_follow_the_policy() {
    for (spec, expected) in [
        ("", vec!["v4"]),
        ("  ipFamilyPolicy: SingleStack\n", vec!["v4"]),
        ("  ipFamilyPolicy: PreferDualStack\n", vec!["v4", "v6"]),
        ("  ipFamilyPolicy: RequireDualStack\n", vec!["v4", "v6"]),
        ("  ipFamilies: [IPv6]\n", vec!["v6"]),
        ("  ipFamilies: [IPv6]\n  ipFamilyPolicy: PreferDualStack\n", vec!["v6", "v4"]),
        ("  ipFamilies: [IPv6, IPv4]\n  ipFamilyPolicy: RequireDualStack\n", vec!["v6", "v4"]),
        ("  clusterIP: fd96::7\n", vec!["v6"]),
    ] {
        let mut world = World::new();
        world.write("a.yaml", &service("a", spec));
        let families: Vec<&str> =
            world.service("a").cluster_ips.iter().map(|ip| if ip.is_ipv4() { "v4" } else { "v6" }).collect();
        assert_eq!((families, world.conditions()), (expected, vec![]), "{spec}");
    }
}

#[test]
fn one_family_is_enough_for_prefer_and_not_for_require() {
    for (policy, complaints) in [("PreferDualStack", 0), ("RequireDualStack", 1)] {
        let mut world = World::with(State::new("id".into()), &["10.96.0.0/16"]);
        world.write("a.yaml", &service("a", &format!("  ipFamilyPolicy: {policy}\n")));
        assert_eq!((world.ips("a").len(), world.conditions().len()), (1, complaints), "{policy}");
    }
}

#[test]
fn types_without_an_address_get_none() {
    let mut world = World::new();
    world.write("a.yaml", &service("headless", "  clusterIP: None\n"));
    world.write("b.yaml", &service("name", "  type: ExternalName\n  externalName: example.org\n"));
    assert!(world.desk.state.services.values().all(|record| record.cluster_ips.is_empty()));
    assert!(!world.exists("headless") && !world.exists("name"));
    assert_eq!(world.conditions(), [""; 0]);
}

#[test]
fn addresses_are_stable_over_changes_and_restarts_and_released_on_delete() {
    let mut world = World::new();
    world.write("a.yaml", &service("a", "  type: NodePort\n"));
    let had = (world.ips("a"), world.node_ports("a"));
    assert!(had.1[0].is_some_and(|port| (30_000..=30_099).contains(&port)));
    world.write("a.yaml", &service("a", "  type: LoadBalancer\n  selector: {app: x}\n"));
    assert_eq!((world.ips("a"), world.node_ports("a")), had);

    let mut again = World::with(restarted(&world), &["10.96.0.0/16", "fd96::/112"]);
    // Somebody else comes first and names nothing: what is remembered is not given away.
    for n in 0..50 {
        again.write(&format!("0-{n}.yaml"), &service(&format!("other-{n}"), "  type: NodePort\n"));
    }
    again.write("a.yaml", &service("a", "  type: NodePort\n"));
    assert_eq!((again.ips("a"), again.node_ports("a")), had);
    assert_eq!(again.conditions(), [""; 0]);

    world.remove("a.yaml");
    assert!(world.desk.state.services.is_empty());
}

#[test]
fn what_is_remembered_of_services_that_are_gone_is_released_after_the_first_look() {
    let mut world = World::new();
    world.write("a.yaml", &format!("{}{}", service("a", ""), service("b", "")));
    let mut again = World::with(restarted(&world), &["10.96.0.0/16"]);
    again.write("a.yaml", &service("a", ""));
    again.desk.forget_absent(&again.folder);
    assert_eq!(again.desk.state.services.keys().collect::<Vec<_>>(), ["default/a"]);
}

#[test]
fn named_addresses_are_respected_wherever_they_are() {
    let mut world = World::new();
    let spec = "  clusterIP: 10.200.0.9\n  type: NodePort\n";
    world.write("a.yaml", &service("a", spec).replace("port: 80\n", "port: 80\n    nodePort: 30005\n"));
    assert_eq!((world.ips("a"), world.node_ports("a")), (vec!["10.200.0.9".to_owned()], vec![Some(30_005)]));
    world.write("a.yaml", &service("a", "  type: NodePort\n"));
    assert_eq!(world.ips("a"), ["10.200.0.9"], "what it had it keeps");
}

#[test]
fn nobody_is_assigned_what_another_names_whatever_the_order() {
    let mut world = World::with(State::new("id".into()), &["10.96.0.0/30"]);
    let named = service("z", "  clusterIP: 10.96.0.1\n");
    world.write("a.yaml", &format!("{}{named}", service("a", "")));
    assert_eq!((world.ips("a"), world.ips("z")), (vec!["10.96.0.2".to_owned()], vec!["10.96.0.1".to_owned()]));
    assert_eq!(world.conditions(), [""; 0]);
}

#[test]
fn of_two_that_name_one_address_the_older_keeps_it_and_the_younger_is_told() {
    let mut world = World::new();
    world.write("z.yaml", &service("z", "  clusterIP: 10.96.0.5\n"));
    world.write("a.yaml", &service("a", "  clusterIP: 10.96.0.5\n"));
    let conditions = world.conditions();
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    assert!(
        conditions[0].starts_with("Service default/a: spec.clusterIPs: 10.96.0.5:80/TCP is kept by Service default/z")
    );
    assert!(world.exists("a") && world.exists("z"));
    world.remove("z.yaml");
    assert_eq!(world.conditions(), [""; 0]);
}

#[test]
fn an_address_that_is_none_leaves_the_rest_of_the_service() {
    let mut world = World::new();
    world.write("a.yaml", &service("a", "  clusterIP: nonsense\n  externalIPs: [192.0.2.1]\n"));
    assert!(world.exists("a"));
    assert_eq!((world.ips("a").len(), world.service("a").external_ips.len()), (0, 1));
    assert!(world.conditions()[0].contains("spec.clusterIPs[0]: \"nonsense\" is not an IP address"));
}

#[test]
fn when_nothing_is_free_the_service_is_told_and_gets_it_later() {
    let mut world = World::with(State::new("id".into()), &["10.96.0.0/30"]);
    for name in ["a", "b", "c"] {
        world.write(&format!("{name}.yaml"), &service(name, ""));
    }
    assert_eq!(world.ips("c").len(), 0);
    assert!(world.conditions()[0].contains("no IPv4 address is free"), "{:?}", world.conditions());
    world.remove("a.yaml");
    world.write("c.yaml", &service("c", "  selector: {app: x}\n"));
    assert_eq!((world.ips("c").len(), world.conditions().len()), (1, 0));
}

#[test]
fn node_ports_follow_type_and_allocation() {
    let mut world = World::new();
    let two = "  - port: 81\n    name: b\n  - port: 80\n    name: c\n    protocol: UDP\n";
    world.write("a.yaml", &service("a", &format!("{two}  type: NodePort\n")));
    let ports = world.node_ports("a");
    assert!(ports.len() == 3 && ports.iter().all(Option::is_some) && ports[0] != ports[1], "{ports:?}");
    world.write(
        "a.yaml",
        &service("a", &format!("{two}  type: LoadBalancer\n  allocateLoadBalancerNodePorts: false\n")),
    );
    assert_eq!(world.node_ports("a"), [None, None, None]);
    world
        .write("a.yaml", &service("a", "  type: ClusterIP\n").replace("port: 80\n", "port: 80\n    nodePort: 30001\n"));
    assert_eq!(world.node_ports("a"), [None]);
    assert!(world.conditions()[0].contains("spec.ports[0].nodePort: a Service of type ClusterIP has no node ports"));
    world.write("a.yaml", &service("a", "  type: NodePort\n").replace("port: 80\n", "port: 80\n    nodePort: 80\n"));
    assert_eq!(world.node_ports("a"), [None]);
    assert!(world.conditions()[0].contains("80 is outside of 30000-30099"), "{:?}", world.conditions());
}

#[test]
fn age_is_when_it_was_first_seen_or_what_is_written() {
    let mut world = World::new();
    world.write("a.yaml", &service("a", ""));
    let first = world.service("a").created;
    world.write("a.yaml", &service("a", "  selector: {app: x}\n"));
    assert_eq!(world.service("a").created, first);
    let mut again = World::with(restarted(&world), &["10.96.0.0/16"]);
    again.now = 9_000;
    again.write("a.yaml", &service("a", ""));
    assert_eq!(again.service("a").created, first);
    again.write("a.yaml", &service("a", "").replace("name: a\n", "name: a\n  uid: another\n"));
    assert!(again.service("a").created > first, "another uid is another Service");
    again.write(
        "a.yaml",
        &service("a", "").replace("name: a\n", "name: a\n  creationTimestamp: 2001-09-09T01:46:40Z\n"),
    );
    assert_eq!(again.service("a").created, 1_000_000_000);
}

#[test]
fn versions_only_grow_over_deletions_and_restarts() {
    let mut world = World::new();
    let mut last = 0;
    let mut check = |events: Vec<Event>| {
        for event in events {
            let version = match event {
                Event::Apply(object) => object.version,
                Event::Seen(_, version) => version,
                _ => continue,
            };
            assert!(version > last);
            last = version;
        }
    };
    check(world.write("a.yaml", &format!("{}{}", service("a", ""), service("b", ""))));
    check(world.remove("a.yaml"));
    let mut again = World::with(restarted(&world), &["10.96.0.0/16"]);
    check(again.write("a.yaml", &service("a", "")));
    let Some(Event::EndResync(_, version)) = again.desk.list(Kind::Service).pop() else { panic!("a list ends") };
    assert_eq!(version, last);
}

#[test]
fn the_ranges_are_a_service_cidr() {
    let world = World::new();
    let listed = world.listed();
    let Facts::ServiceCidr(facts) = &listed[&ObjectKey::new(Kind::ServiceCidr, "", "kubernetes")].facts else {
        panic!("it is one")
    };
    assert_eq!(facts.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.0/16", "fd96::/112"]);
}
