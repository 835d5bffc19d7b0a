//! What the demo prints: sections, what was seen, and a line for each check; counts them.

use std::collections::BTreeMap;
use std::process::ExitCode;

/// Counts checks and prints as it goes.
pub(crate) struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { passed: 0, failed: 0 }
    }

    /// A headline.
    pub(crate) fn section(&mut self, title: &str) {
        println!("\n== {title}");
    }

    /// Something worth seeing.
    pub(crate) fn say(&mut self, line: &str) {
        println!("   {line}");
    }

    /// A claim, and whether it held; `seen` explains a failure.
    pub(crate) fn check(&mut self, claim: &str, held: bool, seen: &str) {
        if held {
            self.passed += 1;
            println!(" ✓ {claim}");
        } else {
            self.failed += 1;
            println!(" ✗ {claim}: {seen}");
        }
    }

    /// The last line, and the exit code that follows from it.
    pub(crate) fn finish(&self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// `a 12, b 9`.
pub(crate) fn tally(counts: &BTreeMap<String, u32>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
