//! Commands as the project's pages show them, so that tests run what people read.
//!
//! A block of commands opens with three backquotes and `sh test=NAME`, where a test runs it, or `sh aws`, where it needs AWS.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// A block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// `test` or `aws`; empty where the page forgot to say.
    pub kind: String,
    /// Its name within the page; empty for `aws`.
    pub name: String,
    /// What a shell gets.
    pub text: String,
    /// The line that it opens on, from 1.
    pub line: usize,
}

/// All blocks of a page, which is named from the project's root.
///
/// # Errors
/// Where the page can't be read, or its last block doesn't end.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(page);
    parse(&std::fs::read_to_string(&path).with_context(|| page.to_owned())?).with_context(|| page.to_owned())
}

/// The commands of one block.
///
/// # Errors
/// Where the page has no block of that name.
pub fn commands(page: &str, name: &str) -> Result<String> {
    let found = blocks(page)?.into_iter().find(|block| block.name == name);
    Ok(found.with_context(|| format!("{page} has no block `sh test={name}`"))?.text)
}

fn parse(page: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(said) = line.strip_prefix("```") else { continue };
        let mut text = String::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, line)) => text.extend([line, "\n"]),
                None => bail!("line {}: this block doesn't end", number + 1),
            }
        }
        if let Some(said) = said.strip_prefix("sh") {
            let (kind, name) = said.trim().split_once('=').unwrap_or((said.trim(), ""));
            blocks.push(Block { kind: kind.to_owned(), name: name.to_owned(), text, line: number + 1 });
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_say_who_runs_them() {
        let page = "a\n```sh test=x\none\ntwo\n```\n```yaml\nsh\n```\n```sh aws\nthree\n```\n```sh\n```\n";
        let found = parse(page).unwrap();
        let short: Vec<_> = found.iter().map(|b| (b.kind.as_str(), b.name.as_str(), b.text.as_str(), b.line)).collect();
        assert_eq!(short, [("test", "x", "one\ntwo\n", 2), ("aws", "", "three\n", 9), ("", "", "", 12)]);
        assert!(parse("```sh test=x\none\n").is_err());
    }
}
