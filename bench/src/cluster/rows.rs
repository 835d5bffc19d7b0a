//! The rows of a real cluster: their limits, and what is made of the rounds' findings. kube-proxy's own number stands beside
//! ours, also where it is the better one.

use anyhow::{Context as _, Result, anyhow};

use super::Part;
use super::found::{Arm, Found, Round, Served, Timed};
use crate::report::{Row, short};
use crate::rows::Limit;
use crate::stats;

/// A row that can be measured.
pub(super) struct Spec {
    /// What it is held to.
    pub(super) limit: Limit,
    /// The part of a round that measures it.
    pub(super) part: Part,
    judge: fn(&Limit, &[Round]) -> Result<Row>,
}

/// All of them, in the order of the table; those of one part beside each other.
pub(super) const ROWS: &[Spec] = &[
    Spec {
        limit: Limit::at_most("cluster coredns ready after kube-proxy's", "s", 10.0),
        part: Part::Start,
        judge: start,
    },
    Spec { limit: Limit::at_most("cluster memory proxy idle", "MiB", 30.0), part: Part::Idle, judge: memory },
    Spec { limit: Limit::at_most("cluster core proxy idle", "%", 0.5), part: Part::Idle, judge: core },
    Spec { limit: Limit::at_most("cluster node ready to first connection", "s", 5.0), part: Part::Join, judge: join },
    Spec { limit: Limit::at_most("cluster daemonset update new failed", "", 0.0), part: Part::Update, judge: new },
    Spec { limit: Limit::at_most("cluster daemonset update held reset", "", 0.0), part: Part::Update, judge: held },
    Spec { limit: Limit::at_most("cluster deployment update failed", "", 0.0), part: Part::Rollout, judge: rollout },
    Spec { limit: Limit::at_most("cluster endpoint change p50", "x", 0.25), part: Part::Changes, judge: half },
    Spec { limit: Limit::at_most("cluster endpoint change p90", "x", 0.25), part: Part::Changes, judge: most },
];

impl Spec {
    /// The row, whatever was found.
    pub(super) fn make(&self, rounds: &[Round]) -> Row {
        let Limit { name, unit, bound, limit } = self.limit;
        let row =
            (self.judge)(&self.limit, rounds).unwrap_or_else(|error| Row::failed(name, unit, bound, limit, &error));
        row.noted(&format!("{:.0} s", self.seconds(rounds)))
    }

    /// How long its part took in all rounds.
    fn seconds(&self, rounds: &[Round]) -> f64 {
        let of = |found: &Found| match self.part {
            Part::Start => found.start.as_ref().and_then(|it| it.result.as_ref().ok()).copied(),
            Part::Idle => found.idle.as_ref().map(|it| it.seconds),
            Part::Join => found.join.as_ref().map(|it| it.seconds),
            Part::Update => found.update.as_ref().map(|it| it.seconds),
            Part::Rollout => found.rollout.as_ref().map(|it| it.seconds),
            Part::Changes => found.changes.as_ref().map(|it| it.seconds),
        };
        rounds.iter().filter_map(|round| of(&round.found)).sum()
    }
}

/// What an arm's rounds found for a part, all of them or the first one's error.
fn all<T: Clone>(rounds: &[Round], arm: Arm, part: fn(&Found) -> &Option<Timed<T>>) -> Result<Vec<T>> {
    let found = rounds.iter().filter(|round| round.arm == arm).filter_map(|round| part(&round.found).as_ref());
    let found: Vec<T> =
        found.map(|it| it.result.clone().map_err(|error| anyhow!("{}: {error}", arm.name()))).collect::<Result<_>>()?;
    if found.is_empty() { Err(anyhow!("{}: never measured", arm.name())) } else { Ok(found) }
}

/// Median and range, in words.
fn range(samples: &[f64], unit: &str) -> String {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let high = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let median = stats::median(samples).unwrap_or(f64::NAN);
    let [median, low, high] = [median, low, high].map(short);
    if samples.len() == 1 { format!("{median} {unit}") } else { format!("{median} {unit} ({low}..{high})") }
}

/// A row of our own numbers, with kube-proxy's beside it, or why there are none.
fn beside(limit: &Limit, ours: &[f64], theirs: Result<Vec<f64>>) -> Row {
    let row = limit.number(Arm::Sheave.name(), ours).noted(&range(ours, limit.unit));
    match theirs {
        Ok(theirs) => {
            let row = row.against(&format!("kube-proxy {}", range(&theirs, limit.unit)));
            let behind = stats::median(ours) > stats::median(&theirs);
            if behind { row.noted("kube-proxy has less") } else { row }
        }
        Err(error) => row.against("kube-proxy: not measured").noted(&format!("{error:#}")),
    }
}

fn start(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    let [ours, theirs] = Arm::BOTH.map(|arm| all(rounds, arm, |found| &found.start));
    let (ours, theirs) = (ours?, theirs?);
    let later: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours - theirs).collect();
    let row = limit.number(Arm::Sheave.name(), &later).noted(&range(&ours, limit.unit));
    Ok(row.against(&format!("kube-proxy {}", range(&theirs, limit.unit))))
}

fn memory(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    let each = |arm| Ok(all(rounds, arm, |found| &found.idle)?.concat());
    let ours = each(Arm::Sheave)?;
    let first = ours.first().context("no node")?.note.clone();
    let resident = |all: &[super::found::Idle]| all.iter().map(|it| it.resident).collect::<Vec<_>>();
    let theirs: Result<Vec<_>> = each(Arm::KubeProxyNftables);
    Ok(beside(limit, &resident(&ours), theirs.map(|it| resident(&it))).noted(&first))
}

fn core(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    let each = |arm| {
        let nodes = all(rounds, arm, |found| &found.idle)?.concat();
        Ok(nodes.into_iter().map(|it| it.core).collect::<Vec<_>>())
    };
    Ok(beside(limit, &each(Arm::Sheave)?, each(Arm::KubeProxyNftables)))
}

fn join(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    let each = |arm| all(rounds, arm, |found| &found.join);
    Ok(beside(limit, &each(Arm::Sheave)?, each(Arm::KubeProxyNftables)))
}

/// Connections that failed while something was replaced, and how many there were.
fn failures(limit: &Limit, ours: &Served, theirs: Result<Served>) -> Row {
    let words = |it: &Served| format!("{} of {}, slowest {:.0} ms", it.failed, it.all, it.longest);
    let row = limit.number(Arm::Sheave.name(), &[ours.failed as f64]).noted(&words(ours));
    let row = ours.failures.iter().take(3).fold(row, |row, failure| row.noted(failure));
    match theirs {
        Ok(theirs) => row.against(&format!("kube-proxy {}", words(&theirs))),
        Err(error) => row.against("kube-proxy: not measured").noted(&format!("{error:#}")),
    }
}

fn sum(all: impl IntoIterator<Item = Served>) -> Served {
    all.into_iter().fold(Served::default(), |mut sum, it| {
        sum.add(it);
        sum
    })
}

fn new(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    let each = |arm| all(rounds, arm, |found| &found.update);
    let ours = each(Arm::Sheave)?;
    let took: Vec<f64> = ours.iter().flat_map(|it| it.took.clone()).collect();
    let new = |all: Vec<super::found::Update>| sum(all.into_iter().map(|it| it.new));
    let theirs = each(Arm::KubeProxyNftables).map(new);
    Ok(failures(limit, &new(ours), theirs).noted(&format!("updates took {}", range(&took, "s"))))
}

fn held(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    let each = |arm| Ok(sum(all(rounds, arm, |found| &found.update)?.into_iter().map(|it| it.held)));
    Ok(failures(limit, &each(Arm::Sheave)?, each(Arm::KubeProxyNftables)))
}

fn rollout(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    let each = |arm| Ok(sum(all(rounds, arm, |found| &found.rollout)?));
    Ok(failures(limit, &each(Arm::Sheave)?, each(Arm::KubeProxyNftables)))
}

fn half(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    quantile(limit, rounds, 0.5)
}

fn most(limit: &Limit, rounds: &[Round]) -> Result<Row> {
    quantile(limit, rounds, 0.9)
}

/// Each of our blocks against the block of kube-proxy's that came next.
fn quantile(limit: &Limit, rounds: &[Round], part: f64) -> Result<Row> {
    let each = |arm| -> Result<Vec<f64>> {
        let blocks = all(rounds, arm, |found| &found.changes)?;
        blocks.iter().map(|block| stats::percentile(block, part).context("an empty block")).collect()
    };
    let (ours, theirs) = (each(Arm::Sheave)?, each(Arm::KubeProxyNftables)?);
    let row = limit.number(Arm::Sheave.name(), &stats::ratios(&ours, &theirs));
    Ok(row.against(&format!("kube-proxy {}", range(&theirs, "ms"))).noted(&range(&ours, "ms")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(arm: Arm, start: f64, changes: &[f64]) -> Round {
        let start = Some(Timed { seconds: 0.0, result: Ok(start) });
        let changes = Some(Timed { seconds: 7.0, result: Ok(changes.to_vec()) });
        Round { arm, found: Found { start, changes, ..Found::default() } }
    }

    fn rounds() -> Vec<Round> {
        vec![
            round(Arm::Sheave, 30.0, &[4.0, 5.0, 6.0]),
            round(Arm::KubeProxyNftables, 25.0, &[100.0, 100.0, 200.0]),
            round(Arm::Sheave, 28.0, &[5.0, 10.0, 20.0]),
            round(Arm::KubeProxyNftables, 29.0, &[50.0, 100.0, 100.0]),
        ]
    }

    fn spec(name: &str) -> &'static Spec {
        ROWS.iter().find(|row| row.limit.name.contains(name)).unwrap()
    }

    #[test]
    fn a_start_is_as_late_as_its_worst_pair() {
        let row = spec("coredns").make(&rounds());
        assert_eq!((row.value, row.low, row.high, row.holds), (5.0, -1.0, 5.0, true));
        assert_eq!(row.against, "kube-proxy 27.0 s (25.0..29.0)");
    }

    #[test]
    fn a_change_is_as_slow_as_its_worst_block() {
        let row = spec("p50").make(&rounds());
        assert_eq!((row.value, row.low, row.holds), (0.1, 0.05, true));
        let row = spec("p90").make(&rounds());
        assert_eq!((row.value, row.low, row.holds), (0.2, 0.03, true));
        assert!(row.note.ends_with("14 s") || row.note.ends_with("28 s"), "{}", row.note);
    }

    #[test]
    fn a_round_that_failed_fails_its_rows_and_names_the_reason() {
        let mut all = rounds();
        all[2].found = Found::failed(&[Part::Start, Part::Changes], &anyhow!("no such luck"));
        for name in ["coredns", "p50"] {
            let row = spec(name).make(&all);
            assert!(!row.holds && row.note.contains("sheave: no such luck"), "{}", row.note);
        }
        let row = spec("idle").make(&all);
        assert!(!row.holds && row.note.contains("never measured"), "{}", row.note);
    }

    #[test]
    fn one_failed_connection_is_too_many_and_kube_proxys_are_shown() {
        let served = |failed| Served { all: 100, failed, failures: vec!["Reset".into()], longest: 9.0 };
        let limit = &spec("deployment").limit;
        let row = failures(limit, &served(1), Ok(served(7)));
        assert!(!row.holds && row.note.contains("1 of 100") && row.note.contains("Reset"), "{}", row.note);
        assert_eq!(row.against, "kube-proxy 7 of 100, slowest 9 ms");
        assert!(failures(limit, &served(0), Err(anyhow!("down"))).holds);
    }

    #[test]
    fn rows_of_one_part_stand_beside_each_other() {
        let mut parts: Vec<_> = ROWS.iter().map(|row| row.part).collect();
        parts.dedup();
        assert_eq!(parts.len(), 6);
    }
}
