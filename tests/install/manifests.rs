//! The rules that matter for manifests: which rights they ask for, what a rollout does, and that flags and mounts agree.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use crate::rendered::{file, flag, items, kustomize, mounted, one, strings, templates, text, unset};
use crate::{root, scratch};

const NAMESPACE: &str = "sheave-system";
const PLACES: [&str; 3] = ["manifests/base", "manifests/overlays/kube-proxy-replacement", "manifests/overlays/eks"];
/// Kinds that live in no namespace.
const CLUSTER_WIDE: [&str; 3] = ["Namespace", "ClusterRole", "ClusterRoleBinding"];
/// All that a proxy may have; the manifest says what for.
const CAPABILITIES: [&str; 5] = ["BPF", "NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "PERFMON"];

/// The objects of every kustomization, and of the Job that cleans.
fn everything() -> Vec<(&'static str, Vec<Value>)> {
    let mut all: Vec<_> = PLACES.into_iter().map(|place| (place, kustomize(place))).collect();
    all.push(("manifests/clean/job.yaml", file(&root().join("manifests/clean/job.yaml"))));
    all
}

fn each_container(mut check: impl FnMut(&str, &Value, &Value)) {
    let mut seen = 0;
    for (place, objects) in everything() {
        for (name, template) in templates(&objects) {
            let spec = &template["spec"];
            assert!(spec["initContainers"].is_null(), "{place}: {name}: check these as well");
            for container in items(&spec["containers"]) {
                seen += 1;
                check(&format!("{place}: {name}"), spec, container);
            }
        }
    }
    assert_eq!(seen, 7, "three places with two containers each, and the Job's");
}

#[test]
fn no_container_has_more_than_it_needs() {
    each_container(|place, spec, container| {
        let context = &container["securityContext"];
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{place}");
        assert!(context["privileged"].is_null() && context["seccompProfile"].is_null(), "{place}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{place}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{place}");
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{place}");
        let added = strings(&context["capabilities"]["add"]);
        assert!(added.iter().all(|name| CAPABILITIES.contains(name)), "{place}: {added:?}");
        for forbidden in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert!(spec[forbidden].is_null(), "{place}: {forbidden}");
        }
        assert_eq!(unset(container), [""; 0], "{place}");
        for need in ["cpu", "memory"] {
            assert!(container["resources"]["requests"][need].is_string(), "{place}: {need}");
        }
    });
}

#[test]
fn the_controller_is_nobody_and_the_proxy_has_no_account() {
    for place in PLACES {
        let objects = kustomize(place);
        let controller = &one(&objects, "Deployment", "sheave-controller")["spec"]["template"]["spec"];
        assert_eq!(controller["securityContext"]["runAsNonRoot"], true);
        assert!(controller["containers"][0]["securityContext"]["capabilities"]["add"].is_null());
        let host = items(&controller["volumes"]).find(|volume| volume["hostPath"].is_object());
        assert_eq!(host, None);
        let proxy = &one(&objects, "DaemonSet", "sheave-proxy")["spec"]["template"]["spec"];
        assert_eq!(proxy["automountServiceAccountToken"], false);
        let bound = objects.iter().flat_map(|object| items(&object["subjects"]));
        let names: BTreeSet<_> = bound.map(|subject| text(&subject["name"])).collect();
        assert_eq!(names, BTreeSet::from(["sheave-cli", "sheave-controller"]), "whoever else has rights");
    }
}

#[test]
fn the_proxys_last_resort_is_the_service_of_the_controllers() {
    for place in PLACES {
        let objects = kustomize(place);
        let service = one(&objects, "Service", "sheave-discovery");
        let links = text(&service["metadata"]["name"]).to_uppercase().replace('-', "_");
        let proxy = &one(&objects, "DaemonSet", "sheave-proxy")["spec"]["template"]["spec"];
        let vip = items(&proxy["containers"][0]["env"]).find(|it| it["name"] == "SHEAVE_DISCOVERY_VIP").unwrap();
        assert_eq!(vip["value"], format!("$({links}_SERVICE_HOST):$({links}_SERVICE_PORT)"), "{place}");
        assert_eq!(proxy["enableServiceLinks"], true, "{place}: the kubelet would name no Service");
    }
}

#[test]
fn a_rule_names_what_it_is_about() {
    for place in PLACES {
        let objects = kustomize(place);
        let mut rules = 0;
        for role in objects.iter().filter(|object| text(&object["kind"]).ends_with("Role")) {
            let cluster = role["kind"] == "ClusterRole";
            for rule in items(&role["rules"]) {
                rules += 1;
                let (groups, resources) = (strings(&rule["apiGroups"]), strings(&rule["resources"]));
                let (verbs, names) = (strings(&rule["verbs"]), strings(&rule["resourceNames"]));
                assert!(!groups.is_empty() && !resources.is_empty() && !verbs.is_empty(), "{place}: {rule}");
                let all: Vec<_> = groups.iter().chain(&resources).chain(&verbs).chain(&names).collect();
                assert!(!all.contains(&&"*"), "{place}: {rule}");
                let lease = resources == ["leases"] && !cluster;
                let grave = |verb: &&str| match *verb {
                    "delete" => !lease, // a replica that is gone leaves one behind
                    verb => ["deletecollection", "bind", "escalate", "impersonate"].contains(&verb),
                };
                assert!(!verbs.iter().any(grave), "{place}: {rule}");
                let own = resources.iter().any(|name| ["secrets", "configmaps"].contains(name));
                // What is to be created can't be named in a rule; anything else about these is about one object.
                assert!(!own || !cluster && (!names.is_empty() || verbs == ["create"]), "{place}: {rule}");
            }
        }
        assert!(rules > 8, "{place} has {rules} rules");
    }
}

#[test]
fn objects_are_in_the_namespace_that_names_say_and_are_known_as_ours() {
    for place in PLACES {
        for object in kustomize(place) {
            let name = format!("{place}: {} {}", object["kind"], object["metadata"]["name"]);
            if CLUSTER_WIDE.contains(&text(&object["kind"])) {
                assert!(object["metadata"]["namespace"].is_null(), "{name}");
            } else {
                assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{name}");
            }
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/part-of"], "sheave", "{name}");
        }
    }
}

#[test]
fn a_rollout_takes_one_pod_at_a_time_and_needs_no_second_place() {
    for place in PLACES {
        let objects = kustomize(place);
        let rollouts =
            [("Deployment", "sheave-controller", "strategy"), ("DaemonSet", "sheave-proxy", "updateStrategy")];
        for (kind, name, field) in rollouts {
            let object = one(&objects, kind, name);
            assert_eq!(object["spec"][field]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}), "{place}");
            let spec = &object["spec"]["template"]["spec"];
            assert_eq!(spec["hostNetwork"], true, "{place}: {name}");
            let container = &spec["containers"][0];
            for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
                let get = &container[probe]["httpGet"];
                assert_eq!((text(&get["path"]), text(&get["port"])), (path, "admin"), "{place}: {name}");
            }
            let template = &object["spec"]["template"];
            let scraped = &template["metadata"]["annotations"]["prometheus.io/port"];
            let ports: Vec<_> = items(&container["ports"]).collect();
            let admin = ports.iter().find(|port| port["name"] == "admin").unwrap();
            assert_eq!(text(scraped), admin["containerPort"].to_string(), "{place}: {name}");
            assert!(flag(container, "--admin").ends_with(&format!(":{}", text(scraped))), "{place}: {name}");
        }
        let controller = one(&objects, "Deployment", "sheave-controller");
        assert_eq!(controller["spec"]["replicas"], 2);
        assert_eq!(controller["spec"]["template"]["spec"]["dnsPolicy"], "Default");
        assert_eq!(one(&objects, "PodDisruptionBudget", "sheave-controller")["spec"]["maxUnavailable"], 1);
    }
}

#[test]
fn the_proxy_is_everywhere_and_its_flags_are_where_things_are_mounted() {
    for place in PLACES {
        let objects = kustomize(place);
        let template = &one(&objects, "DaemonSet", "sheave-proxy")["spec"]["template"];
        let (spec, container) = (&template["spec"], &template["spec"]["containers"][0]);
        assert_eq!(spec["priorityClassName"], "system-node-critical");
        assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
        let at = |name| mounted(template, container, flag(container, name));
        assert_eq!(at("--discovery-dir")["configMap"], json!({"name": "sheave-discovery", "optional": true}));
        let token = &at("--token-file")["projected"]["sources"][0]["serviceAccountToken"];
        assert_eq!(token["audience"], "sheave-discovery");
        assert!(flag(container, "--token-file").ends_with(&format!("/{}", text(&token["path"]))));
        for (name, path) in
            [("--bpffs", "/sys/fs/bpf"), ("--cgroup", "/sys/fs/cgroup"), ("--state-dir", "/var/lib/sheave")]
        {
            assert_eq!(at(name)["hostPath"]["path"], path, "{place}");
        }
    }
}

#[test]
fn cleaning_finds_what_the_proxy_left() {
    let objects = kustomize("manifests/base");
    let proxy = &one(&objects, "DaemonSet", "sheave-proxy")["spec"]["template"];
    let job = file(&root().join("manifests/clean/job.yaml"));
    let clean = &job[0]["spec"]["template"];
    let (serving, cleaning) = (&proxy["spec"]["containers"][0], &clean["spec"]["containers"][0]);
    for name in ["--bpffs", "--cgroup", "--state-dir"] {
        let path = flag(cleaning, name);
        assert_eq!(path, flag(serving, name));
        assert_eq!(mounted(clean, cleaning, path)["hostPath"], mounted(proxy, serving, path)["hostPath"]);
    }
    assert_eq!(cleaning["image"], serving["image"]);
    assert_eq!((text(&clean["spec"]["nodeName"]), flag(cleaning, "--node-name")), ("NODE", "NODE"));
    assert_eq!(clean["spec"]["hostNetwork"], true);
}

#[test]
fn without_kube_proxy_the_api_servers_address_has_to_be_given() {
    for (place, optional) in PLACES.into_iter().zip([true, false, false]) {
        let objects = kustomize(place);
        let container = &one(&objects, "Deployment", "sheave-controller")["spec"]["template"]["spec"]["containers"][0];
        let found: Vec<_> = items(&container["env"]).filter(|env| env["name"] == "SHEAVE_API_SERVER").collect();
        assert_eq!(found.len(), 1, "{place}");
        let from = json!({"name": "sheave-api-server", "key": "address", "optional": optional});
        assert_eq!(found[0]["valueFrom"]["configMapKeyRef"], from, "{place}");
    }
}

#[test]
fn on_eks_both_stay_off_nodes_that_are_not_for_them() {
    for (name, template) in templates(&kustomize("manifests/overlays/eks")) {
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let terms = &template["spec"]["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"];
        assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["fargate", "hybrid", "auto"]), "{name}");
    }
}

/// What the pages tell people to write: an overlay of their own with the components and another image.
#[test]
fn an_own_kustomization_sets_the_image_and_adds_components() {
    let folder = scratch("own-kustomization");
    let copied = Command::new("cp").arg("-r").arg(root().join("manifests")).arg(&folder).status().unwrap();
    assert!(copied.success());
    let own = "resources: [manifests/overlays/eks]\n\
               components: [manifests/components/podmonitor, manifests/components/bottlerocket, manifests/components/ipv6]\n\
               images: [{name: localhost/sheave, newName: registry.example/sheave, newTag: 1.2.3}]\n";
    std::fs::write(folder.join("kustomization.yaml"), own).unwrap();
    let objects = kustomize(folder.to_str().unwrap());
    for (name, template) in templates(&objects) {
        assert_eq!(template["spec"]["containers"][0]["image"], "registry.example/sheave:1.2.3", "{name}");
    }
    let proxy = &one(&objects, "DaemonSet", "sheave-proxy")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(proxy["securityContext"]["seLinuxOptions"]["type"], "super_t");
    assert_eq!(proxy["securityContext"]["readOnlyRootFilesystem"], true, "the component adds and takes nothing away");
    let controller = &one(&objects, "Deployment", "sheave-controller")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(flag(controller, "--advertise"), "[$(POD_IP)]:15010");
    for (container, flags) in [(controller, ["--listen", "--admin"]), (proxy, ["--admin", "--health"])] {
        assert_eq!(unset(container), [""; 0]);
        for name in flags {
            assert!(flag(container, name).starts_with("[::]:"), "{name}");
        }
    }
    let monitor = &one(&objects, "PodMonitor", "sheave")["spec"];
    for (name, template) in templates(&objects) {
        for (label, value) in monitor["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&template["metadata"]["labels"][label], value, "{name}");
        }
        let ports: Vec<_> = items(&template["spec"]["containers"][0]["ports"]).map(|p| text(&p["name"])).collect();
        assert!(ports.contains(&text(&monitor["podMetricsEndpoints"][0]["port"])), "{name}: {ports:?}");
    }
}

/// A flag or variable that a program doesn't have would keep it from starting, on every node at once.
#[test]
fn programs_have_the_flags_and_variables_that_manifests_set() {
    let flags = |name: &str| -> BTreeSet<String> {
        let source = crate::text(name);
        let fields = source.lines().filter_map(|line| line.trim().strip_prefix("pub(crate) ")?.split_once(": "));
        fields.map(|(field, _)| field.to_owned()).collect()
    };
    let known = [("controller", flags("controller/src/args.rs")), ("proxy", flags("proxy/src/args.rs"))];
    each_container(|place, _, container| {
        let program = text(&container["command"][0]);
        let (_, flags) = known.iter().find(|(name, _)| program == format!("/usr/bin/sheave-{name}")).unwrap();
        let arguments = strings(&container["args"]).into_iter().filter_map(|argument| argument.strip_prefix("--"));
        let arguments = arguments.map(|argument| argument.split('=').next().unwrap_or_default().replace('-', "_"));
        let variables = items(&container["env"]).filter_map(|env| text(&env["name"]).strip_prefix("SHEAVE_"));
        for name in arguments.chain(variables.map(str::to_lowercase)) {
            assert!(flags.contains(&name), "{place}: {program} has no {name}");
        }
    });
}
