//! A file's text, cut into YAML documents without parsing it, so that a broken document spares the others and an unchanged
//! one need not be read again. In YAML a line that starts with `---` or `...` always is a marker (YAML 1.2, 9.1.2).

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Counted from 1; documents without content don't count.
    pub(super) number: usize,
    /// The line of the file that its text starts with, from 1.
    pub(super) line: usize,
    /// Its text, with the marker that opens it.
    pub(super) text: &'a str,
}

/// The documents that have content.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") || is_marker(line, "...") {
            push(&mut found, start_line, &text[start..at]);
            // The closing marker is nobody's text; the opening one may have content behind it.
            let skip = if line.starts_with("...") { line.len() } else { 0 };
            (start, start_line) = (at + skip, index + 1 + usize::from(skip > 0));
        }
        at += line.len();
    }
    push(&mut found, start_line, &text[start..]);
    found
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

fn push<'a>(found: &mut Vec<Document<'a>>, line: usize, text: &'a str) {
    let empty = |line: &str| line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "---";
    if !text.lines().all(|line| empty(line.trim())) {
        found.push(Document { number: found.len() + 1, line, text });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(text: &str) -> Vec<(usize, usize, &str)> {
        documents(text).into_iter().map(|d| (d.number, d.line, d.text)).collect()
    }

    #[test]
    fn documents_have_numbers_and_lines() {
        assert_eq!(parts("a: 1\n---\nb: 2\n---\n"), [(1, 1, "a: 1\n"), (2, 2, "---\nb: 2\n")]);
        assert_eq!(parts("# only\n---\n# comments\n---\na: 1"), [(1, 4, "---\na: 1")]);
        assert_eq!(parts("%YAML 1.2\n--- {a: 1}\n...\n--- {b: 2}\n"), [(1, 2, "--- {a: 1}\n"), (2, 4, "--- {b: 2}\n")]);
        assert_eq!(parts("\u{feff}a: 1"), [(1, 1, "a: 1")]);
        assert_eq!(parts(""), []);
    }

    #[test]
    fn a_marker_inside_a_line_or_indented_is_text() {
        assert_eq!(parts("a: |\n  ---\n  x\nb: a---b\n----\n").len(), 1);
    }

    proptest! {
        #[test]
        fn joined_documents_are_found_again(bodies in prop::collection::vec("[a-z]{1,5}: [0-9]{1,3}\n", 0..8)) {
            let text = bodies.iter().map(|body| format!("---\n{body}")).collect::<String>();
            let found = documents(&text);
            prop_assert_eq!(found.len(), bodies.len());
            for (document, body) in found.iter().zip(&bodies) {
                prop_assert_eq!(document.text, &format!("---\n{body}"));
                prop_assert_eq!(text.lines().nth(document.line), Some(body.trim_end()));
            }
        }
    }
}
