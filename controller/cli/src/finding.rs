//! Something an operator should know: how bad, about what, and how to mend it.

use serde::Serialize;

/// How bad it is; the order is that of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Something does not work, or will not.
    Error,
    /// It works, but not as well as it could, or not for ever.
    Warning,
    /// It was looked at and is as it should be.
    Ok,
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// What it is about, as `node n1` or `kernel`.
    pub(crate) about: String,
    pub(crate) message: String,
    /// What to do; empty where there is nothing to be done.
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn error(about: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, about: about.into(), message: message.into(), remedy: remedy.into() }
    }

    pub(crate) fn warning(about: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::error(about, message, remedy) }
    }

    pub(crate) fn ok(about: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level: Level::Ok, ..Self::error(about, message, "") }
    }
}

/// Whether scripts should take notice.
pub(crate) fn any_error(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Error)
}

/// One line each, worst first, otherwise in their order.
pub(crate) fn lines(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.level);
    let line = |finding: &&Finding| {
        let level = match finding.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Ok => "ok",
        };
        let remedy = if finding.remedy.is_empty() { String::new() } else { format!("; {}", finding.remedy) };
        // What programs and objects say may have lines and control characters of its own.
        let text = format!("{}: {}{remedy}", finding.about, finding.message);
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("{level:<8} {text}\n")
    };
    sorted.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_a_line_is_one_line() {
        let findings = [
            Finding::ok("kernel", "6.1"),
            Finding::warning("node b", "slow", ""),
            Finding::error("node a", "two\nlines\u{1b}[31m", "mend it"),
        ];
        assert_eq!(
            lines(&findings),
            "error    node a: two lines [31m; mend it\nwarning  node b: slow\nok       kernel: 6.1\n"
        );
        assert!(any_error(&findings) && !any_error(&findings[..2]));
    }
}
