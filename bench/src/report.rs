//! What a run found: rows with their limits, as a table for people and as JSON for whoever compares runs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::rounds::Measured;
use crate::stats::Estimate;

/// Which side of the limit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// The value may be the limit or less.
    AtMost,
    /// The value must be the limit or more.
    AtLeast,
}

/// One measured limit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What is measured.
    pub(crate) name: String,
    /// What of ours was measured.
    pub(crate) arm: String,
    /// What it was compared with; empty for a plain number.
    pub(crate) against: String,
    /// The result.
    pub(crate) value: f64,
    /// The lower end of the 95 % interval; for what is no ratio, the smallest of the repeats.
    pub(crate) low: f64,
    /// The upper end; for what is no ratio, the largest of the repeats.
    pub(crate) high: f64,
    /// What the three are counted in.
    pub(crate) unit: String,
    /// The limit, in the same unit.
    pub(crate) limit: f64,
    /// Whether the row holds.
    pub(crate) holds: bool,
    /// What stands beside the row in the table: medians, peaks, why it does not hold.
    #[serde(skip)]
    pub(crate) note: String,
    /// The A/A arm's ratio, where there is one.
    #[serde(skip)]
    pub(crate) aa: Option<Estimate>,
}

impl Row {
    /// A ratio of times per operation.
    pub(crate) fn ratio(name: &str, arm: &str, against: &str, limit: f64, m: &Measured) -> Self {
        let mut note = format!("{} vs {}", micros(m.ours_ns), micros(m.reference_ns));
        if !m.measurable {
            note.push_str(", not measurable in three tries");
        }
        Self {
            name: name.into(),
            arm: arm.into(),
            against: against.into(),
            value: m.ratio.value,
            low: m.ratio.low,
            high: m.ratio.high,
            unit: "x".into(),
            limit,
            holds: m.measurable && m.ratio.value <= limit,
            note,
            aa: Some(m.aa),
        }
    }

    /// A number from one or more repeats: the worst of them is the value.
    pub(crate) fn number(name: &str, arm: &str, unit: &str, bound: Bound, limit: f64, repeats: &[f64]) -> Self {
        let low = repeats.iter().copied().fold(f64::INFINITY, f64::min);
        let high = repeats.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (value, holds) = match bound {
            Bound::AtMost => (high, high <= limit),
            Bound::AtLeast => (low, low >= limit),
        };
        Self {
            name: name.into(),
            arm: arm.into(),
            against: String::new(),
            value,
            low,
            high,
            unit: unit.into(),
            limit,
            holds: holds && !repeats.is_empty(),
            note: String::new(),
            aa: None,
        }
    }

    /// The same row, compared with something.
    pub(crate) fn against(mut self, against: &str) -> Self {
        self.against = against.into();
        self
    }

    /// The same row with more beside it.
    pub(crate) fn noted(mut self, note: &str) -> Self {
        if !self.note.is_empty() {
            self.note.push_str(", ");
        }
        self.note.push_str(note);
        self
    }

    /// A limit that could not be measured at all: it does not hold, and the reason stands beside it. JSON has no NaN, so
    /// the numbers are those that can't be within the limit.
    pub(crate) fn failed(name: &str, unit: &str, bound: Bound, limit: f64, error: &anyhow::Error) -> Self {
        let worst = match bound {
            Bound::AtMost => f64::MAX,
            Bound::AtLeast => 0.0,
        };
        Self::number(name, "-", unit, bound, limit, &[worst]).noted(&format!("not measured: {error:#}"))
    }
}

/// Nanoseconds as text in microseconds.
fn micros(ns: f64) -> String {
    format!("{:.1} us", ns / 1000.0)
}

/// The A/A arms of a run.
#[derive(Debug, Serialize)]
struct Aa {
    /// The ratio that is farthest from 1; 1 where no row has an A/A arm.
    ratio: f64,
}

/// A run's result as it is written.
#[derive(Debug, Serialize)]
struct Document<'a> {
    aa: Aa,
    rows: &'a [Row],
}

/// The run as JSON.
pub(crate) fn json(rows: &[Row]) -> Result<String> {
    let ratio = rows
        .iter()
        .filter_map(|row| row.aa.map(|aa| aa.value))
        .max_by(|a, b| (a - 1.0).abs().total_cmp(&(b - 1.0).abs()))
        .unwrap_or(1.0);
    Ok(serde_json::to_string_pretty(&Document { aa: Aa { ratio }, rows })?)
}

/// Writes the JSON, making the folder where it is missing.
pub(crate) fn write_json(path: &Path, rows: &[Row]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make this folder", folder.display()))?;
    }
    std::fs::write(path, json(rows)? + "\n").with_context(|| format!("{}: cannot write the results", path.display()))
}

/// A number with as many digits as are worth reading.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e15 => "-".into(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The table that is printed.
pub(crate) fn table(rows: &[Row]) -> String {
    let header = ["name", "arm", "against", "value", "95 % interval", "limit", "A/A", "holds", ""].map(String::from);
    let mut lines = vec![header];
    lines.extend(rows.iter().map(|row| {
        [
            row.name.clone(),
            row.arm.clone(),
            row.against.clone(),
            format!("{} {}", short(row.value), row.unit),
            format!("{}..{}", short(row.low), short(row.high)),
            short(row.limit),
            row.aa.map(|aa| short(aa.value)).unwrap_or_default(),
            if row.holds { "yes".into() } else { "NO".into() },
            row.note.clone(),
        ]
    }));
    let mut widths = [0; 9];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for (width, cell) in widths.iter().zip(line) {
            // A `String` takes any text, so this can't fail.
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ratio: f64, aa: f64, measurable: bool) -> Measured {
        let e = |value: f64| Estimate { value, low: value - 0.01, high: value + 0.01 };
        Measured { ratio: e(ratio), aa: e(aa), reference_ns: 40_000.0, ours_ns: 40_000.0 * ratio, measurable }
    }

    #[test]
    fn a_ratio_holds_when_it_is_measured_and_within() {
        assert!(Row::ratio("n", "a", "b", 1.05, &measured(1.05, 1.0, true)).holds);
        assert!(!Row::ratio("n", "a", "b", 1.05, &measured(1.06, 1.0, true)).holds);
        let unclear = Row::ratio("n", "a", "b", 1.05, &measured(1.0, 1.0, false));
        assert!(!unclear.holds && unclear.note.contains("not measurable"));
    }

    #[test]
    fn a_number_is_judged_by_its_worst_repeat() {
        let row = Row::number("n", "a", "MiB", Bound::AtMost, 25.0, &[24.0, 25.5, 23.0]);
        assert!(!row.holds);
        assert_eq!((row.value, row.low, row.high), (25.5, 23.0, 25.5));
        assert!(Row::number("n", "a", "", Bound::AtLeast, 8000.0, &[8000.0]).holds);
        assert!(!Row::number("n", "a", "", Bound::AtLeast, 8000.0, &[7999.0]).holds);
        assert!(!Row::number("n", "a", "", Bound::AtMost, 1.0, &[]).holds, "nothing measured holds nothing");
    }

    #[test]
    fn json_has_exactly_the_agreed_fields_and_the_worst_aa() {
        let rows = [
            Row::ratio("one", "ours", "theirs", 1.1, &measured(1.0, 1.01, true)),
            Row::ratio("two", "ours", "theirs", 1.1, &measured(1.0, 0.985, true)),
            Row::failed("three", "s", Bound::AtMost, 5.0, &anyhow::anyhow!("no world")),
        ];
        let doc: serde_json::Value = serde_json::from_str(&json(&rows).unwrap()).unwrap();
        let mut top: Vec<_> = doc.as_object().unwrap().keys().cloned().collect();
        top.sort();
        assert_eq!(top, ["aa", "rows"]);
        assert_eq!(doc["aa"], serde_json::json!({"ratio": 0.985}));
        let mut fields: Vec<_> = doc["rows"][0].as_object().unwrap().keys().cloned().collect();
        fields.sort();
        assert_eq!(fields, ["against", "arm", "high", "holds", "limit", "low", "name", "unit", "value"]);
        assert_eq!(doc["rows"][2]["holds"], false);
        assert!(doc["rows"][2]["value"].is_number());
    }

    #[test]
    fn the_table_lines_up_and_says_which_row_does_not_hold() {
        let text = table(&[
            Row::ratio("a long name", "x", "y", 1.1, &measured(1.2, 1.0, true)),
            Row::number("n", "a", "s", Bound::AtMost, 5.0, &[1.0]),
        ]);
        let lines: Vec<_> = text.lines().collect();
        let column = lines[0].find("holds").unwrap();
        assert!(lines[1][column..].starts_with("NO") && lines[2][column..].starts_with("yes"), "{text}");
    }
}
