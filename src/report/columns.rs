//! Tables for a terminal: cells in columns, two spaces between them.

use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};

/// The side of its column on which a cell stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// On the left, as words are set.
    Left,
    /// On the right, as numbers are set.
    Right,
}

/// Each row as a line, as wide as its widest cells; the sides of columns beyond the last that is given are its own.
/// Cells may be painted.
pub(crate) fn lines(rows: &[Vec<String>], sides: &[Side]) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        let side = sides.get(i).or(sides.last());
        let right = side.is_some_and(|side| *side == Side::Right);
        column.set_padding((0, 2));
        column.set_cell_alignment(if right { CellAlignment::Right } else { CellAlignment::Left });
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// The lines as text, each moved in by so many spaces and ended.
pub(crate) fn indented(lines: &[String], spaces: usize) -> String {
    let indent = " ".repeat(spaces);
    lines.iter().map(|line| format!("{indent}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use anstyle::Style;

    use super::*;
    use crate::report::layout::{paint, printable};

    #[test]
    fn columns_are_as_wide_as_what_is_seen_of_their_cells() {
        let cells = |row: [&str; 3]| row.map(str::to_owned).to_vec();
        let bold = paint("fits", Style::new().bold());
        let rows = [cells(["", "at most", ""]), cells([&bold, "1.0 GiB", ""]), cells(["模型", "10.0 GiB", "over"])];
        let lines = lines(&rows, &[Side::Left, Side::Right, Side::Left]);
        assert_eq!(lines[0], "       at most");
        assert_eq!(printable(&lines[1]), "\u{1b}[1mfits\u{1b}[0m   1.0 GiB");
        assert_eq!(lines[2], "模型  10.0 GiB  over");
        assert_eq!(indented(&lines[2..], 2), "  模型  10.0 GiB  over\n");
    }
}
