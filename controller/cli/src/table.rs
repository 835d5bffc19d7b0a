//! Aligned columns, as kubectl has them: upper-case headings, two spaces between, nothing after the last.

/// Rows under headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row with as many cells as there are headings; an empty cell is shown as `-`.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| {
            let cell: String = cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            if cell.is_empty() { "-".to_owned() } else { cell }
        };
        self.rows.push(cells.into_iter().map(shown).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A duration as kubectl writes ages: the two largest units, or one.
pub(crate) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (2.., _, _) => format!("{days}d"),
        (_, 3.., _) => format!("{hours}h"),
        (_, _, 10..) => format!("{minutes}m"),
        (_, _, 2..) => format!("{minutes}m{}s", seconds % 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_text() {
        let mut table = Table::new(&["NODE", "STATE", "WHY"]);
        table.row(["a-long-name".into(), "ready".into(), String::new()]);
        table.row(["b".into(), "größer\u{7}".into(), "x".into()]);
        let expected = "NODE         STATE    WHY\na-long-name  ready    -\nb            größer   x\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn ages_are_short() {
        let all = [5, 119, 125, 601, 7200, 11_000, 200_000].map(age);
        assert_eq!(all, ["5s", "119s", "2m5s", "10m", "120m", "3h", "2d"]);
    }
}
