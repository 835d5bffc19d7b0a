//! Bad input: one line, a counter, a condition; everything else goes on.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sheave_harness::address::Pair;
use sheave_harness::deployment::Deployment;
use sheave_harness::metrics::ask_socket;
use sheave_harness::objects::{self, READY};
use sheave_harness::source::Folder;
use sheave_harness::testpod::protocol::{Ask, Kind};
use sheave_harness::wait::until;

use crate::case::{Case, Proof, both, folder};
use crate::check::{SOON, question, served_by};
use crate::context::{Context, From, To, ports, sockets};

const NO_CONNECTION: Proof = Proof::Own("it makes no connection of its own path");

pub(crate) const CASES: &[Case] = &[
    folder("broken_files_cost_one_line_and_a_counter_and_nothing_else", broken_files),
    folder("a_service_with_an_impossible_field_is_named_with_its_field", impossible_fields),
    folder("a_folder_that_disappears_leaves_everything_served", folder_disappears),
    both("a_selector_that_matches_thousands_of_pods_is_served", thousands),
    folder("wrong_flags_exit_2_and_say_one_line", wrong_flags).proof(NO_CONNECTION),
];

/// A Service beside the bad ones, served before and after.
fn bystander(it: &Context) -> Result<(Deployment, Pair)> {
    let (web, vip) = (it.deployment("bystander", 1)?, it.vip());
    it.apply(&it.service("bystander", vip, &web, &ports()))?;
    still_served(it, &web, vip)?;
    Ok((web, vip))
}

fn still_served(it: &Context, web: &Deployment, vip: Pair) -> Result<()> {
    for target in sockets(vip, 80) {
        let sources = it.sources(From::Pod(1), To::ClusterIp, target.is_ipv6());
        served_by(it, it.agent(From::Pod(1)), &question(Kind::Tcp, target), &web.names(), &sources)?;
    }
    Ok(())
}

fn of(it: &Context) -> Result<&Folder> {
    it.folder.as_deref().context("this case needs a folder")
}

fn rejected(it: &Context) -> Result<f64> {
    Ok(it.cluster.controller_metrics(0)?.sum("sheave_objects_rejected_total", &[]))
}

fn controller_log(it: &Context) -> String {
    let name = format!("{}-controller0.log", it.cluster.options.name);
    fs::read_to_string(it.cluster.world.run.logs().join(name)).unwrap_or_default()
}

/// Puts a file into the folder and waits until it is counted and its line stands in the log; then takes it away.
fn bad_file(it: &Context, name: &str, content: &[u8], words: &[&str]) -> Result<()> {
    let before = rejected(it)?;
    of(it)?.write_raw(name, content)?;
    until(&format!("{name} is counted and named"), SOON, || {
        let now = rejected(it)?;
        ensure!(now > before, "rejected: {before}, then {now}");
        let log = controller_log(it);
        let named = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(named, "no line with {words:?}");
        Ok(())
    })?;
    fs::remove_file(of(it)?.path().join(name))?;
    Ok(())
}

fn broken_files(it: &Context) -> Result<()> {
    let (web, vip) = bystander(it)?;
    bad_file(it, "broken.yaml", b"kind: Service\n  metadata: [\n", &["broken.yaml"])?;
    let unknown = b"apiVersion: example.com/v1\nkind: Gizmo\nmetadata: {name: x}\n";
    bad_file(it, "gizmo.yaml", unknown, &["gizmo.yaml", "Gizmo"])?;
    let mut huge =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "huge", "namespace": it.namespace}});
    huge["metadata"]["annotations"] = json!({"a": "x".repeat(2 << 20)});
    bad_file(it, "huge.json", huge.to_string().as_bytes(), &["huge.json"])?;
    still_served(it, &web, vip)
}

fn impossible_fields(it: &Context) -> Result<()> {
    let (web, vip) = bystander(it)?;
    type Spoil = fn(&mut Value);
    let bad: [(&str, Spoil, &str); 4] = [
        ("zero", |it| it["spec"]["ports"][0]["port"] = json!(0), "port"),
        ("large", |it| it["spec"]["ports"][0]["port"] = json!(70_000), "port"),
        ("twice", |it| it["spec"]["ports"][1] = it["spec"]["ports"][0].clone(), "ports"),
        ("address", |it| it["spec"]["externalIPs"] = json!(["not-an-address"]), "externalIPs"),
    ];
    for (name, spoil, field) in bad {
        let mut service = it.service(name, it.vip(), &web, &ports());
        spoil(&mut service);
        let before = rejected(it)?;
        it.apply(&service)?;
        until(&format!("{name}: counted, and one line with its name and field"), SOON, || {
            ensure!(rejected(it)? > before, "not counted");
            let object = format!("{}/{name}", it.namespace);
            let named = controller_log(it).lines().any(|line| line.contains(&object) && line.contains(field));
            ensure!(named, "no line with {object} and {field}");
            let (_, body) = ask_socket(&it.cluster.controller_socket(0), "GET", "/debug/services")?;
            ensure!(body.contains(name), "/debug/services has no {name}");
            Ok(())
        })?;
    }
    still_served(it, &web, vip)
}

fn folder_disappears(it: &Context) -> Result<()> {
    let (mut web, vip) = bystander(it)?;
    let agent = it.agent(From::Pod(1));
    let load = agent.load_start(Ask::new(Kind::Hello, sockets(vip, 80)[0]), 100)?;
    let (path, aside) = (of(it)?.path().clone(), of(it)?.path().with_extension("aside"));
    fs::rename(&path, &aside)?;
    until("the controller says that the folder is gone", SOON, || {
        let text = path.display().to_string();
        let said = controller_log(it).lines().rev().take(20).any(|line| line.contains(&text));
        ensure!(said, "no line names {text}");
        Ok(())
    })?;
    still_served(it, &web, vip)?;
    fs::rename(&aside, &path)?;
    web.scale(2)?;
    still_served(it, &web, vip)?;
    let report = agent.load_stop(load)?;
    ensure!(report.failed() == 0, "{report:?}");
    Ok(())
}

fn thousands(it: &Context) -> Result<()> {
    /// As issue and limits name it.
    const PODS: u16 = 5000;
    let (web, vip) = bystander(it)?;
    let labels = json!({"app": "many"});
    let count = if it.kube.is_some() { PODS / 25 } else { PODS }; // three requests each
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let address = Pair { v4: [10, 245, high, low].into(), v6: [0xfd00, 0x245, 0, 0, 0, 0, 0, number].into() };
        let name = format!("many-{number}");
        let node = &it.node(1 + usize::from(number % 2)).name;
        it.apply(&objects::bare_pod(&it.namespace, &name, node, &labels, &[], Some(address), false, READY))?;
    }
    let mut many = it.service("many", it.vip(), &web, &ports());
    many["spec"]["selector"] = labels;
    it.apply(&many)?;
    until("all of them are endpoints on every node", Duration::from_secs(60), || {
        for node in &it.cluster.world.nodes {
            let text = it.cluster.debug(node, "/debug/services")?;
            let [high, low] = (count - 1).to_be_bytes();
            let last = Ipv4Addr::new(10, 245, high, low);
            ensure!(text.contains(&last.to_string()), "{} doesn't have {last} yet", node.name);
        }
        Ok(())
    })?;
    still_served(it, &web, vip)
}

fn wrong_flags(_: &Context) -> Result<()> {
    use sheave_harness::process::program;
    let run = |name: &str, arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let output = std::process::Command::new(program(name)?).args(arguments).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let wrong: [(&str, &[&str]); 6] = [
        ("sheave-controller", &["run", "--source", "nowhere:x", "--state-dir", "/tmp"]),
        ("sheave-controller", &["run", "--no-such-flag"]),
        ("sheave-proxy", &["run", "--datapath", "magic"]),
        ("sheave-proxy", &["run", "--node-name", ""]),
        ("sheave-proxy", &["run", "--no-such-flag"]),
        ("sheave-proxy", &["no-such-command"]),
    ];
    for (name, arguments) in wrong {
        let (code, text) = run(name, arguments)?;
        ensure!(code == Some(2), "{name} {arguments:?} exits {code:?}: {text}");
        ensure!(text.trim().lines().count() == 1, "{name} {arguments:?} says more than one line:\n{text}");
    }
    Ok(())
}
