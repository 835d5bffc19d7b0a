//! Interleaved measuring (DESIGN section 10): short blocks of every arm in turn, the order rotated from round to round, and
//! ratios taken within a round, so that what drifts or hits the machine hits all arms alike.

use anyhow::{Context, Result, bail, ensure};

use crate::stats::{self, Estimate};

/// The widest half of a 95 % interval with which a ratio counts as measured, as a part of the ratio.
const HALF_WIDTH: f64 = 0.03;
/// Tries until a comparison is given up as "not measurable".
const TRIES: usize = 3;

/// What is repeated in a block, and so how far the same arm may differ from itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Connect, one byte each way, close.
    Connections,
    /// One byte there and back on an open connection.
    RoundTrips,
    /// Bulk data one way.
    Streams,
}

impl Kind {
    /// How far from 1 the A/A arm's ratio may be.
    fn aa_limit(self) -> f64 {
        match self {
            Self::Connections => 0.02,
            Self::RoundTrips | Self::Streams => 0.03,
        }
    }
}

/// One side of a comparison: runs one block and says how long an operation took, in nanoseconds.
pub(crate) type Arm<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// A measured comparison.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Time per operation, ours / reference.
    pub(crate) ratio: Estimate,
    /// The reference against itself.
    pub(crate) aa: Estimate,
    /// Median nanoseconds per operation of the reference and of ours.
    pub(crate) reference_ns: f64,
    /// The same of ours.
    pub(crate) ours_ns: f64,
    /// False when no try met the rules: then the numbers are those of the last one.
    pub(crate) measurable: bool,
}

/// Runs every arm once per round and returns the blocks' times per arm. A first, unrecorded round warms everything.
pub(crate) fn interleave(arms: &mut [Arm<'_>], rounds: usize) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::with_capacity(rounds); arms.len()];
    for arm in arms.iter_mut() {
        arm()?;
    }
    for round in 0..rounds {
        for step in 0..arms.len() {
            let which = (round + step) % arms.len();
            let time = arms[which]().with_context(|| format!("round {round}, arm {which}"))?;
            ensure!(time.is_finite() && time > 0.0, "round {round}, arm {which}: impossible time {time} ns");
            times[which].push(time);
        }
    }
    Ok(times)
}

/// Compares `ours` with `reference`, whose second arm (`again`) is the A/A arm.
pub(crate) fn compare(
    kind: Kind,
    rounds: usize,
    reference: Arm<'_>,
    again: Arm<'_>,
    ours: Arm<'_>,
) -> Result<Measured> {
    let mut arms = [reference, again, ours];
    let mut last = None;
    for _ in 0..TRIES {
        let measured = judge(kind, &interleave(&mut arms, rounds)?)?;
        if measured.measurable {
            return Ok(measured);
        }
        last = Some(measured);
    }
    match last {
        Some(measured) => Ok(measured),
        None => bail!("no try was made"),
    }
}

/// The comparison's result from the blocks' times of its three arms: reference, reference again, ours.
fn judge(kind: Kind, times: &[Vec<f64>]) -> Result<Measured> {
    let [reference, again, ours] = times else { bail!("three arms are compared, got {}", times.len()) };
    let estimate = |x: &[f64]| stats::bootstrap_median(&stats::ratios(x, reference)).context("no rounds");
    let (ratio, aa) = (estimate(ours)?, estimate(again)?);
    Ok(Measured {
        ratio,
        aa,
        reference_ns: stats::median(reference).context("no rounds")?,
        ours_ns: stats::median(ours).context("no rounds")?,
        measurable: (aa.value - 1.0).abs() <= kind.aa_limit() && ratio.half_width() <= HALF_WIDTH,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn arm<'a>(log: &'a RefCell<Vec<char>>, name: char, time: f64) -> Arm<'a> {
        Box::new(move || {
            log.borrow_mut().push(name);
            Ok(time)
        })
    }

    #[test]
    fn every_arm_runs_once_per_round_and_starts_as_often_as_the_others() {
        let log = RefCell::new(Vec::new());
        let times = interleave(&mut [arm(&log, 'a', 1.0), arm(&log, 'b', 2.0), arm(&log, 'c', 3.0)], 6).unwrap();
        assert_eq!(times, [vec![1.0; 6], vec![2.0; 6], vec![3.0; 6]]);
        let order: String = log.borrow().iter().collect();
        assert_eq!(order, "abcabcbcacababcbcacab", "the warm-up round, then rotated ones");
    }

    #[test]
    fn a_steady_machine_is_measurable_and_the_ratio_is_ours_over_the_reference() {
        let log = RefCell::new(Vec::new());
        let m = compare(Kind::Connections, 40, arm(&log, 'a', 100.0), arm(&log, 'b', 101.0), arm(&log, 'c', 130.0))
            .unwrap();
        assert!(m.measurable);
        assert!((m.ratio.value - 1.3).abs() < 1e-9 && (m.aa.value - 1.01).abs() < 1e-9, "{m:?}");
        assert_eq!(log.borrow().len(), 41 * 3, "one try is enough");
    }

    #[test]
    fn an_arm_that_differs_from_itself_is_not_measurable_after_three_tries() {
        let log = RefCell::new(Vec::new());
        let three = |kind, again| {
            log.borrow_mut().clear();
            compare(kind, 40, arm(&log, 'a', 100.0), arm(&log, 'b', again), arm(&log, 'c', 100.0)).unwrap()
        };
        assert!(!three(Kind::Connections, 102.5).measurable);
        assert_eq!(log.borrow().len(), 3 * 41 * 3);
        assert!(three(Kind::RoundTrips, 102.5).measurable, "round trips may scatter by 3 %");
        assert!(!three(Kind::Streams, 96.0).measurable);
    }

    #[test]
    fn a_wide_interval_is_not_measurable() {
        let mut n = 0;
        let wild: Arm<'_> = Box::new(move || {
            n += 1;
            Ok(if n % 2 == 0 { 100.0 } else { 200.0 })
        });
        let m = compare(Kind::Connections, 40, Box::new(|| Ok(100.0)), Box::new(|| Ok(100.0)), wild).unwrap();
        assert!(!m.measurable, "{m:?}");
    }

    #[test]
    fn an_arm_that_fails_ends_the_comparison_with_its_reason() {
        let bad: Arm<'_> = Box::new(|| bail!("connection refused"));
        let e = compare(Kind::Connections, 1, Box::new(|| Ok(1.0)), Box::new(|| Ok(1.0)), bad).unwrap_err();
        assert!(format!("{e:#}").contains("refused"));
        assert!(
            compare(Kind::Connections, 1, Box::new(|| Ok(0.0)), Box::new(|| Ok(1.0)), Box::new(|| Ok(1.0))).is_err()
        );
    }
}
