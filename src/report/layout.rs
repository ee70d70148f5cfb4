//! Text in colours and in columns.

use anstyle::Style;

/// Text in a style.
pub fn paint(text: &str, style: Style) -> String {
    if style.is_plain() { text.to_owned() } else { format!("{style}{text}{style:#}") }
}

/// Entries of known widths, laid out in as many columns as fit.
pub fn columns(entries: Vec<(String, usize)>, width: usize) -> Vec<String> {
    let widest = entries.iter().map(|(_, w)| *w).max().unwrap_or(1);
    let per_line = ((width + 3) / (widest + 3)).max(1);
    let lines = entries.chunks(per_line);
    lines.map(|line| line.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("   ")).collect()
}
