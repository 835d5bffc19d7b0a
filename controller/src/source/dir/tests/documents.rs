//! Files become objects; what can't is said with file, document, line, field and remedy, and spares everything else.

use super::*;

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
";

#[test]
fn yaml_json_and_lists_give_objects() {
    let mut world = World::new();
    world.write("a.yaml", &format!("{}{}", service("a", ""), service("b", "")));
    world.write("sub/b.yml", POD);
    world.write(
        "c.json",
        r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}
           {"apiVersion": "v1", "kind": "List", "items": [
             {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"ports": [{"port": 80}]}},
             {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}]}"#,
    );
    world.write(
        "d.yaml",
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: d}\n  spec: {ports: [{port: 80}]}\n",
    );
    let keys: Vec<String> = world.listed().keys().map(ToString::to_string).collect();
    assert_eq!(
        keys,
        [
            "Node n1",
            "Namespace default",
            "ServiceCIDR kubernetes",
            "Service default/a",
            "Service default/b",
            "Service default/c",
            "Service default/d",
            "Pod default/p"
        ]
    );
    assert_eq!((world.faults(), world.conditions()), (vec![], vec![]));
}

#[test]
fn a_broken_document_spares_the_others_and_says_where() {
    let mut world = World::new();
    let text = format!("{}---\nkind: [broken\n{}", service("a", ""), service("b", ""));
    world.write("x.yaml", &text);
    assert!(world.exists("a") && world.exists("b"));
    let faults = world.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("x.yaml, document 2, line 1") && faults[0].contains("is no YAML"), "{faults:?}");
}

#[test]
fn a_field_of_the_wrong_type_is_named_with_its_line() {
    for (spec, expected) in [
        ("  - port: x\n", "x.yaml, document 2, line 17: spec.ports[1].port: invalid type: string \"x\""),
        ("  clusterIPs: 7\n", "x.yaml, document 2, line 17: spec.clusterIPs: invalid type: integer `7`"),
        // YAML itself would take the number for a string, an API server does not; so the parser of YAML knows no line.
        (
            "  selector:\n    app: 1.5\n",
            "x.yaml, document 2 from line 9: spec.selector.app: invalid type: floating point",
        ),
    ] {
        let mut world = World::new();
        world.write("x.yaml", &format!("{}{}", service("a", ""), service("b", spec)));
        assert!(world.exists("a") && !world.exists("b"));
        let faults = world.faults();
        assert!(faults.len() == 1 && faults[0].starts_with(expected), "{faults:?}");
        assert!(!faults[0].contains('\n') && faults[0].contains("; write what"), "{faults:?}");
    }
}

#[test]
fn a_field_inside_a_list_or_json_is_named_too() {
    let mut world = World::new();
    let item =
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"ports": [{"port": "x"}]}}"#;
    world.write("x.json", &format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{item}]}}"#));
    assert!(world.faults()[0].contains("items[0].spec.ports[0].port: invalid type"), "{:?}", world.faults());
    world.write("x.json", "{\"kind\": 1}\n\n{\"a\": \n oops}");
    let faults = world.faults();
    assert!(faults[1].starts_with("x.json, document 2, line 4: is no JSON"), "{faults:?}");
}

#[test]
fn bad_values_that_have_the_right_type_leave_the_rest_of_the_service() {
    let mut world = World::new();
    world.write("x.yaml", &service("a", "  - port: 70000\n    name: big\n  - port: 0\n    name: zero\n"));
    assert!(world.exists("a"));
    let conditions = world.conditions();
    assert!(conditions[0].contains("spec.ports[1].port: 70000 is not a port"), "{conditions:?}");
    assert!(conditions[1].contains("spec.ports[2].port: 0 is not a port"), "{conditions:?}");
}

#[test]
fn an_unknown_kind_is_one_line_and_ignored() {
    let mut world = World::new();
    let unknown = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n";
    world.write("x.yaml", &format!("{}{unknown}", service("a", "")));
    assert!(world.exists("a"));
    assert_eq!(world.faults().len(), 1);
    assert!(world.faults()[0].contains("kind \"Deployment\" of apiVersion \"apps/v1\""), "{:?}", world.faults());
    world.write("x.yaml", unknown);
    assert!(!world.exists("a"), "an unknown kind does not make a file broken");
}

#[test]
fn names_that_an_api_server_would_refuse_are_refused() {
    for (meta, word) in [
        ("metadata: {name: Upper}", "metadata.name: \"Upper\" is no name"),
        ("metadata: {name: a/b}", "is no name"),
        ("metadata: {name: 12}", "metadata.name: 12 is no name"),
        ("metadata: {}", "metadata.name: is missing"),
        ("spec: {}", "metadata: is missing"),
        ("metadata: {name: a, namespace: B}", "metadata.namespace"),
    ] {
        let mut world = World::new();
        world.write("x.yaml", &format!("apiVersion: v1\nkind: Pod\n{meta}\n"));
        assert!(world.faults().len() == 1 && world.faults()[0].contains(word), "{:?}", world.faults());
    }
}

#[test]
fn an_object_of_two_mebibytes_is_refused_and_lists_may_be_larger() {
    let mut world = World::new();
    let big = format!("  externalName: {}\n", "x".repeat(2 << 20));
    world.write("x.yaml", &format!("{}{}", service("a", ""), service("b", &big)));
    assert!(world.exists("a") && !world.exists("b"));
    assert!(world.faults()[0].contains("more than 1572864"), "{:?}", world.faults());
    let item = |name: &str| format!("- metadata: {{name: {name}, annotations: {{x: {}}}}}\n", "y".repeat(1 << 20));
    world.write("l.yaml", &format!("apiVersion: v1\nkind: NamespaceList\nitems:\n{}{}", item("n1"), item("n2")));
    assert_eq!(world.index.len(Kind::Namespace), 2);
}

#[test]
fn while_a_file_is_broken_its_objects_keep_their_last_good_version() {
    let mut world = World::new();
    let good = format!("{}{}", service("a", "  externalIPs: [192.0.2.1]\n"), service("b", ""));
    world.write("x.yaml", &good);
    world.write("x.yaml", "---\nkind: [");
    assert!(world.exists("a") && world.exists("b"));
    world.write("x.yaml", &format!("{}---\nkind: [", service("a", "  externalIPs: [192.0.2.2]\n")));
    assert_eq!(world.service("a").external_ips[0].to_string(), "192.0.2.2", "good documents go on");
    assert!(world.exists("b") && world.faults()[0].contains("objects this file gave before stay"));
    world.update("x.yaml", Content::Unreadable { message: "m".into(), remedy: "r".into() });
    assert!(world.exists("a") && world.exists("b"));
    world.write("y.yaml", &service("b", "  externalIPs: [192.0.2.3]\n"));
    assert_eq!(world.service("b").external_ips.len(), 1, "a good version elsewhere beats a kept one");
    world.write("x.yaml", &service("a", ""));
    assert!(world.faults().is_empty());
    world.remove("y.yaml");
    assert!(world.exists("a") && !world.exists("b"), "mended, the file means what it says");
}

#[test]
fn of_an_object_in_two_files_the_first_by_path_keeps_it() {
    let mut world = World::new();
    world.write("b.yaml", &service("s", "  externalIPs: [192.0.2.2]\n"));
    world.write("a.yaml", &service("s", "  externalIPs: [192.0.2.1]\n"));
    let ip = |world: &World| world.service("s").external_ips[0].to_string();
    assert_eq!(ip(&world), "192.0.2.1");
    let expected = "b.yaml, document 1: metadata.name: Service default/s is already in a.yaml, which keeps it; \
                    take one of the two out";
    assert_eq!(world.faults(), [expected]);
    world.remove("a.yaml");
    assert_eq!((ip(&world), world.faults().len()), ("192.0.2.2".to_owned(), 0));
}

#[test]
fn a_pod_without_status_is_told_what_it_lacks() {
    let mut world = World::new();
    world.write("p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}]}\n");
    let conditions = world.conditions();
    assert_eq!(conditions.len(), 2, "{conditions:?}");
    assert!(conditions[0].starts_with("Pod default/p: status.podIPs: is missing"), "{conditions:?}");
    assert!(conditions[1].starts_with("Pod default/p: status.conditions: has no Ready"), "{conditions:?}");
    world.write("p.yaml", POD);
    assert_eq!(world.conditions(), [""; 0]);
}

#[test]
fn a_change_of_comments_is_no_event() {
    let mut world = World::new();
    world.write("a.yaml", &service("a", ""));
    assert_eq!(world.write("a.yaml", &format!("# comment\n{}", service("a", ""))), []);
    assert_eq!(world.write("a.yaml", &service("a", "  # comment\n")), []);
}

#[test]
fn bytes_that_are_no_text_are_said() {
    let mut world = World::new();
    world.update("a.yaml", Content::Bytes(vec![0xff, 0xfe, 0]));
    assert!(world.faults()[0].starts_with("a.yaml: is not UTF-8"), "{:?}", world.faults());
}
