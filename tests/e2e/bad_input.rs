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

use crate::case::{Case, Proof, folder};
use crate::check::{SOON, question, served_by};
use crate::context::{Context, From, To, ports, sockets};

const NO_CONNECTION: Proof = Proof::Own("it makes no connection of its own path");

pub(crate) const CASES: &[Case] = &[
    folder("broken_files_cost_one_line_and_a_counter_and_nothing_else", broken_files),
    folder("a_service_with_an_impossible_field_is_named_with_its_field", impossible_fields),
    folder("a_folder_that_disappears_leaves_everything_served", folder_disappears),
    folder("a_selector_that_matches_thousands_of_pods_is_served_and_named", thousands),
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

/// What a complaint has to say: each of these words in one line of the log, and in one entry of the admin page.
pub(crate) struct Complaint<'a> {
    rejected: f64,
    log: usize,
    words: &'a [&'a str],
}

impl<'a> Complaint<'a> {
    /// Before the bad input is given.
    pub(crate) fn expect(it: &Context, words: &'a [&'a str]) -> Result<Self> {
        Ok(Self { rejected: rejected(it)?, log: controller_log(it).len(), words })
    }

    /// Waits until the input is counted, named in a line written since, and on the page at `list`, with a remedy.
    pub(crate) fn made(&self, it: &Context, list: fn(&Value) -> Vec<String>) -> Result<()> {
        let says = |text: &str| self.words.iter().all(|word| text.contains(word)) && text.contains("; ");
        until(&format!("a line, a count and an entry with {:?}", self.words), SOON, || {
            let now = rejected(it)?;
            ensure!(now > self.rejected, "rejected: {}, then {now}", self.rejected);
            let log = controller_log(it);
            ensure!(log[self.log..].lines().any(says), "no line of the log says so");
            let (_, body) = ask_socket(&it.cluster.controller_socket(0), "GET", "/debug/services")?;
            let page: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
            ensure!(list(&page).iter().any(|entry| says(entry)), "/debug/services does not: {:?}", list(&page));
            Ok(())
        })
        .map(drop)
    }
}

/// What is wrong with the source.
fn problems(page: &Value) -> Vec<String> {
    let text = |problem: &Value| problem.as_str().map(str::to_owned);
    page["problems"].as_array().into_iter().flatten().filter_map(text).collect()
}

/// What is wrong with objects, each in one line as in the log.
pub(crate) fn conditions(page: &Value) -> Vec<String> {
    let of_services = page["services"].as_array().into_iter().flatten().map(|service| &service["conditions"]);
    let lists = of_services.chain([&page["conditions"]]);
    let field = |condition: &Value, name: &str| condition[name].as_str().unwrap_or_default().to_owned();
    let line = |c: &Value| {
        let [object, at, message, remedy] = ["object", "field", "message", "remedy"].map(|name| field(c, name));
        format!("{object}: {at}: {message}; {remedy}")
    };
    lists.filter_map(Value::as_array).flatten().map(line).collect()
}

/// Puts a file into the folder, waits until it is complained of, and takes it away.
fn bad_file(it: &Context, name: &str, content: &[u8], words: &[&str]) -> Result<()> {
    let complaint = Complaint::expect(it, words)?;
    of(it)?.write_raw(name, content)?;
    complaint.made(it, problems)?;
    fs::remove_file(of(it)?.path().join(name))?;
    Ok(())
}

fn broken_files(it: &Context) -> Result<()> {
    let (web, vip) = bystander(it)?;
    bad_file(it, "broken.yaml", b"kind: Service\n  metadata: [\n", &["broken.yaml", "line"])?;
    let unknown = b"apiVersion: example.com/v1\nkind: Gizmo\nmetadata: {name: x}\n";
    bad_file(it, "gizmo.yaml", unknown, &["gizmo.yaml", "Gizmo"])?;
    let mut huge =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "huge", "namespace": it.namespace}});
    huge["metadata"]["annotations"] = json!({"a": "x".repeat(2 << 20)});
    bad_file(it, "huge.json", huge.to_string().as_bytes(), &["huge.json", "bytes"])?;
    still_served(it, &web, vip)
}

fn impossible_fields(it: &Context) -> Result<()> {
    let (web, vip) = bystander(it)?;
    type Spoil = fn(&mut Value);
    let bad: [(&str, Spoil, &str); 4] = [
        ("zero", |it| it["spec"]["ports"][0]["port"] = json!(0), "spec.ports[0].port"),
        ("large", |it| it["spec"]["ports"][0]["port"] = json!(70_000), "spec.ports[0].port"),
        ("twice", |it| it["spec"]["ports"][1] = it["spec"]["ports"][0].clone(), "spec.ports[1]"),
        ("address", |it| it["spec"]["externalIPs"] = json!(["not-an-address"]), "spec.externalIPs[0]"),
    ];
    for (name, spoil, field) in bad {
        let mut service = it.service(name, it.vip(), &web, &ports());
        spoil(&mut service);
        let object = format!("{}/{name}", it.namespace);
        let words = [object.as_str(), field];
        let complaint = Complaint::expect(it, &words)?;
        it.apply(&service)?;
        complaint.made(it, |page| [problems(page), conditions(page)].concat())?;
    }
    still_served(it, &web, vip)
}

fn folder_disappears(it: &Context) -> Result<()> {
    let (mut web, vip) = bystander(it)?;
    let agent = it.agent(From::Pod(1));
    let load = agent.load_start(Ask::new(Kind::Hello, sockets(vip, 80)[0]), 100)?;
    let (path, aside) = (of(it)?.path().clone(), of(it)?.path().with_extension("aside"));
    let text = path.display().to_string();
    let words = [text.as_str()];
    let complaint = Complaint::expect(it, &words)?;
    fs::rename(&path, &aside)?;
    complaint.made(it, problems)?;
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
    for number in 0..PODS {
        let [high, low] = number.to_be_bytes();
        let address = Pair { v4: [10, 245, high, low].into(), v6: [0xfd00, 0x245, 0, 0, 0, 0, 0, number].into() };
        let name = format!("many-{number}");
        let node = &it.node(1 + usize::from(number % 2)).name;
        it.apply(&objects::bare_pod(&it.namespace, &name, node, &labels, &[], Some(address), false, READY))?;
    }
    let mut many = it.service("many", it.vip(), &web, &ports());
    many["spec"]["selector"] = labels;
    let object = format!("{}/many", it.namespace);
    let words = [object.as_str(), "spec.selector"];
    let complaint = Complaint::expect(it, &words)?;
    it.apply(&many)?;
    until("all of them are endpoints on every node", Duration::from_secs(60), || {
        for node in &it.cluster.world.nodes {
            let text = it.cluster.debug(node, "/debug/services")?;
            let [high, low] = (PODS - 1).to_be_bytes();
            let last = Ipv4Addr::new(10, 245, high, low);
            ensure!(text.contains(&last.to_string()), "{} doesn't have {last} yet", node.name);
        }
        Ok(())
    })?;
    complaint.made(it, conditions)?;
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
