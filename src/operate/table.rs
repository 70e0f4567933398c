//! Columns for people.

use std::fmt;

/// Rows under headings; each column is as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
enum Line {
    Row(Vec<String>),
    Note(String),
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            lines: vec![Line::Row(headings.iter().map(ToString::to_string).collect())],
        }
    }

    /// Adds a row, one cell for each heading.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.lines.push(Line::Row(cells.into_iter().collect()));
    }

    /// Adds a line that belongs to the row above and minds no columns.
    pub fn note(&mut self, text: String) {
        self.lines.push(Line::Note(text));
    }

    fn rows(&self) -> impl Iterator<Item = &Vec<String>> {
        self.lines.iter().filter_map(|line| match line {
            Line::Row(cells) => Some(cells),
            Line::Note(_) => None,
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let columns = self.rows().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for line in &self.lines {
            match line {
                Line::Row(row) => {
                    let cells = row.iter().zip(&widths);
                    let line: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
                    writeln!(f, "  {}", line.join("  ").trim_end())?;
                }
                Line::Note(text) => writeln!(f, "      {text}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["a", "bb"]);
        table.row(["long".to_owned(), String::new()]);
        table.note("a longer text".to_owned());
        table.row(["x".to_owned(), "y".to_owned()]);
        assert_eq!(
            table.to_string(),
            "  a     bb\n  long\n      a longer text\n  x     y\n"
        );
    }
}
