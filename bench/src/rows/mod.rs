//! The rows: which limits there are, and the groups that measure them.
//!
//! A group builds what it needs, measures its rows and takes it all down again. One that fails makes its rows fail, with
//! the reason, and the next group goes on.

mod ebpf;
mod kube;
mod large;
mod userspace;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use sheave_harness::run::Run;
use sheave_harness::world::World;

use crate::report::{self, Bound, Row};
use crate::rounds::Measured;

/// The CPU of the client, the far side and every proxy that stands between the two: the last one. All share it, in all arms
/// alike, because a hand-over from one CPU to another costs an interrupt, which on a virtual machine takes several times
/// as long as all the work of a connection (here 170 us of 345 us, against 55 us on one CPU) and would hide it.
pub(crate) fn cpu() -> usize {
    std::thread::available_parallelism().map_or(0, |n| n.get() - 1)
}

/// Which node of the world is whose.
mod node {
    /// How many there are.
    pub(super) const COUNT: u8 = 8;
    /// eBPF, one Service.
    pub(super) const EBPF_ONE: usize = 1;
    /// eBPF, 10,000 Services.
    pub(super) const EBPF_MANY: usize = 2;
    /// Userspace, one Service.
    pub(super) const USERSPACE_ONE: usize = 3;
    /// The plain proxy, behind the product's rules.
    pub(super) const PLAIN: usize = 4;
    /// haproxy, behind the product's rules.
    pub(super) const HAPROXY: usize = 5;
    /// Userspace, 10,000 Services.
    pub(super) const USERSPACE_MANY: usize = 6;
    /// Userspace, one Service, for comparison with 10,000.
    pub(super) const USERSPACE_FEW: usize = 7;
    /// Fed by a real API server.
    pub(super) const KUBE: usize = 8;
}

/// A limit that the project set itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// The row's name.
    pub(crate) name: &'static str,
    /// What it is counted in.
    pub(crate) unit: &'static str,
    /// Which side holds.
    pub(crate) bound: Bound,
    /// The limit itself.
    pub(crate) limit: f64,
}

impl Limit {
    /// A ratio of times that must not be larger.
    const fn ratio(name: &'static str, limit: f64) -> Self {
        Self { name, unit: "x", bound: Bound::AtMost, limit }
    }

    /// Any other number that must not be larger.
    pub(crate) const fn at_most(name: &'static str, unit: &'static str, limit: f64) -> Self {
        Self { name, unit, bound: Bound::AtMost, limit }
    }

    /// A number that must not be smaller.
    const fn at_least(name: &'static str, unit: &'static str, limit: f64) -> Self {
        Self { name, unit, bound: Bound::AtLeast, limit }
    }

    /// The row of a comparison.
    pub(crate) fn compared(&self, arm: &str, against: &str, measured: &Measured) -> Row {
        Row::ratio(self.name, arm, against, self.limit, measured)
    }

    /// The row of a plain number, from its repeats.
    pub(crate) fn number(&self, arm: &str, repeats: &[f64]) -> Row {
        Row::number(self.name, arm, self.unit, self.bound, self.limit, repeats)
    }
}

/// What a group gets to know.
pub(crate) struct Context<'a> {
    /// Namespaces for nodes and pods.
    pub(crate) world: &'a World,
    /// When the run began.
    start: Instant,
    /// A part of the names of the rows to measure.
    pattern: &'a str,
}

impl Context<'_> {
    /// Whether a row is asked for.
    pub(crate) fn wants(&self, limit: &Limit) -> bool {
        limit.name.contains(self.pattern)
    }

    /// Says what is being done now.
    pub(crate) fn say(&self, what: &str) {
        say(self.start, what);
    }
}

/// Rows that are measured in one set-up.
struct Group {
    limits: &'static [Limit],
    measure: fn(&Context<'_>, &mut Vec<Row>) -> Result<()>,
}

/// All of them, in the order of the table.
const GROUPS: &[Group] = &[
    Group { limits: ebpf::LIMITS, measure: ebpf::measure },
    Group { limits: userspace::LIMITS, measure: userspace::measure },
    Group { limits: large::LIMITS, measure: large::measure },
    Group { limits: kube::LIMITS, measure: kube::measure },
];

/// Measures every row whose name contains `pattern`, prints the table and writes the JSON.
pub(crate) fn quick(run: &Run, json: &Path, pattern: &str) -> Result<ExitCode> {
    let start = Instant::now();
    if !GROUPS.iter().flat_map(|group| group.limits).any(|limit| limit.name.contains(pattern)) {
        bail!("no row's name contains {pattern:?}");
    }
    let world = World::build(run, node::COUNT).context("the test network")?;
    let context = Context { world: &world, start, pattern };
    let mut rows = Vec::new();
    for group in GROUPS {
        let wanted: Vec<_> = group.limits.iter().filter(|limit| context.wants(limit)).collect();
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { continue };
        say(start, &format!("{} .. {}", first.name, last.name));
        let before = rows.len();
        let result = (group.measure)(&context, &mut rows);
        if let Err(error) = &result {
            say(start, &format!("failed: {error:#}"));
        }
        let error = result.err().unwrap_or_else(|| anyhow::anyhow!("the group made no such row"));
        for limit in wanted {
            if !rows[before..].iter().any(|row| row.name == limit.name) {
                rows.push(Row::failed(limit.name, limit.unit, limit.bound, limit.limit, &error));
            }
        }
    }
    finish(start, json, &rows)
}

/// Writes the JSON and prints the table; the program's exit code.
#[expect(clippy::print_stdout, reason = "the table is what this program is run for")]
pub(crate) fn finish(start: Instant, json: &Path, rows: &[Row]) -> Result<ExitCode> {
    report::write_json(json, rows)?;
    println!("{}", report::table(rows));
    let failed = rows.iter().filter(|row| !row.holds).count();
    println!(
        "{} rows hold, {failed} do not, in {} s; {}",
        rows.len() - failed,
        start.elapsed().as_secs(),
        json.display()
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tells whoever waits how far the run is.
#[expect(clippy::print_stderr, reason = "progress of a program that runs for minutes")]
pub(crate) fn say(start: Instant, what: &str) {
    eprintln!("bench {:>4} s: {what}", start.elapsed().as_secs());
}
