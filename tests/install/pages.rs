//! Pages that tell people what to type: each block of commands is run by a test or says that it needs AWS, and what pages and
//! alerts refer to exists.

use std::collections::{BTreeMap, BTreeSet};

use sheave_harness::pages::{Block, blocks};

use crate::{root, text};

/// Pages with commands, as the harness reads them.
const PAGES: [&str; 4] = ["README.md", "docs/install.md", "docs/eks.md", "docs/troubleshooting.md"];

/// The sources of tests, in which a block's name stands for its being run.
fn sources() -> String {
    let listed = crate::succeed("git", &["ls-files", "-co", "--exclude-standard", "tests"]);
    let tests = listed.lines().filter(|name| *name != "tests/install/pages.rs" && root().join(name).is_file());
    tests.filter_map(|name| std::fs::read_to_string(root().join(name)).ok()).collect()
}

#[test]
fn each_block_of_commands_is_run_by_a_test_or_needs_aws() {
    let (sources, mut run, mut aws) = (sources(), 0, 0);
    for page in PAGES {
        let mut names = BTreeSet::new();
        for Block { kind, name, text, line } in blocks(page).unwrap() {
            let place = format!("{page}:{line}");
            assert!(!text.trim().is_empty(), "{place} is empty");
            match kind.as_str() {
                "aws" => aws += 1,
                "test" => {
                    run += 1;
                    assert!(!name.is_empty() && names.insert(name.clone()), "{place}: a block needs a name of its own");
                    let reference = format!("\"{page}\", \"{name}\"");
                    assert!(sources.contains(&reference), "{place}: no test runs {reference}");
                }
                other => panic!("{place}: {other:?} is neither test=NAME nor aws"),
            }
        }
    }
    assert!(
        run >= 8 && aws >= 4,
        "{run} blocks that tests run and {aws} that need AWS; is the reader of pages broken?"
    );
}

/// As GitHub makes an anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let headings = text(page).lines().filter_map(|line| line.strip_prefix('#')).map(str::to_owned).collect::<Vec<_>>();
    headings.iter().map(|heading| anchor(heading.trim_start_matches('#'))).collect()
}

#[test]
fn alerts_and_pages_point_at_headings_that_exist() {
    let mut known = BTreeMap::new();
    let mut pointers: Vec<(String, String)> = text("manifests/monitoring/rules.yml")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook: "))
        .map(|to| ("manifests/monitoring/rules.yml".to_owned(), to.to_owned()))
        .collect();
    assert!(pointers.len() > 10, "{pointers:?}");
    for page in PAGES {
        let folder = page.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let linked = text(page)
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let ours = linked.into_iter().filter(|to| !to.starts_with("http"));
        pointers.extend(ours.map(|to| match to.strip_prefix('#') {
            Some(_) => (page.to_owned(), format!("{page}{to}")),
            None => (page.to_owned(), format!("{folder}{to}")),
        }));
    }
    for (from, to) in pointers {
        let (page, heading) = to.split_once('#').map_or((to.as_str(), None), |(page, heading)| (page, Some(heading)));
        assert!(root().join(page).exists(), "{from} points at {to}");
        if let Some(heading) = heading {
            let all = known.entry(page.to_owned()).or_insert_with(|| anchors(page));
            assert!(all.contains(heading), "{from} points at {to}");
        }
    }
}
