//! Medians, percentiles and a bootstrap interval. Pure: the randomness of the bootstrap comes from a fixed seed, so the
//! same rounds always give the same interval.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Resamples of the bootstrap. The interval's ends move by less than a tenth of its width between 2,000 and 20,000.
const RESAMPLES: usize = 2_000;
/// The seed of every bootstrap.
const SEED: u64 = 0x5eea_7e00;

/// A value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// The median.
    pub(crate) value: f64,
    /// The interval's lower end.
    pub(crate) low: f64,
    /// The interval's upper end.
    pub(crate) high: f64,
}

impl Estimate {
    /// Half of the interval's width as a part of the value.
    pub(crate) fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.value
    }
}

/// The value below which `part` (0 to 1) of the samples lie: the nearest rank (ISO 2602), so always one of the samples.
/// None when there are none.
pub(crate) fn percentile(samples: &[f64], part: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The median: the middle sample, or the mean of the two in the middle. None when there are none.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    median_of(&mut sorted)
}

/// The median of a scratch buffer, which it reorders.
fn median_of(samples: &mut [f64]) -> Option<f64> {
    let n = samples.len();
    if n == 0 {
        return None;
    }
    let (below, &mut middle, _) = samples.select_nth_unstable_by(n / 2, f64::total_cmp);
    if n % 2 == 1 {
        return Some(middle);
    }
    let lower = below.iter().copied().max_by(f64::total_cmp)?;
    Some(f64::midpoint(lower, middle))
}

/// The median and its 95 % interval by the percentile bootstrap (Efron 1979). None when there are no samples.
pub(crate) fn bootstrap_median(samples: &[f64]) -> Option<Estimate> {
    let value = median(samples)?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut scratch = vec![0.0; samples.len()];
    let medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            for slot in &mut scratch {
                *slot = samples[rng.random_range(0..samples.len())];
            }
            median_of(&mut scratch)
        })
        .collect();
    Some(Estimate { value, low: percentile(&medians, 0.025)?, high: percentile(&medians, 0.975)? })
}

/// Per round, `ours / reference`.
pub(crate) fn ratios(ours: &[f64], reference: &[f64]) -> Vec<f64> {
    ours.iter().zip(reference).map(|(a, b)| a / b).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 0.0), Some(1.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(ratios(&[2.0, 3.0], &[1.0, 2.0]), [2.0, 1.5]);
        assert_eq!(bootstrap_median(&[]), None);
    }

    #[test]
    fn the_interval_narrows_with_more_rounds() {
        let noisy = |n: u32| -> Vec<f64> { (0..n).map(|i| 1.0 + f64::from(i * 37 % 101) / 1000.0).collect() };
        let few = bootstrap_median(&noisy(20)).unwrap();
        let many = bootstrap_median(&noisy(2000)).unwrap();
        assert!(many.half_width() < few.half_width() / 3.0, "{few:?} {many:?}");
    }

    #[test]
    fn the_interval_holds_the_true_median_about_nineteen_times_in_twenty() {
        let mut rng = StdRng::seed_from_u64(1);
        let held = (0..60)
            .filter(|_| {
                let samples: Vec<f64> = (0..60).map(|_| rng.random_range(0.0..1.0)).collect();
                let e = bootstrap_median(&samples).unwrap();
                e.low <= 0.5 && 0.5 <= e.high
            })
            .count();
        assert!((52..=60).contains(&held), "{held} of 60 intervals hold the true median");
    }

    /// The median in the plainest way.
    fn sorted_median(samples: &[f64]) -> f64 {
        let mut s = samples.to_vec();
        s.sort_by(f64::total_cmp);
        if s.len() % 2 == 1 { s[s.len() / 2] } else { f64::midpoint(s[s.len() / 2 - 1], s[s.len() / 2]) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn median_is_that_of_the_sorted_samples(samples in prop::collection::vec(-1e6..1e6f64, 1..80)) {
            prop_assert_eq!(median(&samples), Some(sorted_median(&samples)));
        }

        #[test]
        fn a_percentile_is_the_smallest_sample_with_enough_below(
            samples in prop::collection::vec(0..1000u32, 1..80), part in 0.0..=1.0f64,
        ) {
            let samples: Vec<f64> = samples.into_iter().map(f64::from).collect();
            let found = percentile(&samples, part).unwrap();
            let at_or_below = |x: f64| samples.iter().filter(|&&s| s <= x).count() as f64;
            let need = part * samples.len() as f64;
            prop_assert!(at_or_below(found) + 1e-6 >= need);
            for &smaller in samples.iter().filter(|&&s| s < found) {
                prop_assert!(at_or_below(smaller) < need);
            }
        }

        #[test]
        fn the_interval_surrounds_the_median_and_is_repeatable(samples in prop::collection::vec(0.5..2.0f64, 1..50)) {
            let e = bootstrap_median(&samples).unwrap();
            prop_assert!(e.low <= e.value && e.value <= e.high, "{:?}", e);
            prop_assert_eq!(bootstrap_median(&samples), Some(e));
        }
    }
}
