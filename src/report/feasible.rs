//! The feasible set of a Mac as text: models by formats.

use anstyle::{AnsiColor, Style};

use crate::plan::table::Cell;
use crate::report::columns::{self, Side, indented};
use crate::report::layout::paint;
use crate::spec::machine::Machine;
use crate::units::{Seconds, short_count};

/// What a table is shown with.
pub(crate) struct About<'a> {
    /// The Mac.
    pub machine: &'a Machine,
    /// Time limit.
    pub limit: Seconds,
    /// What was assumed of the data.
    pub assumed: Option<String>,
}

/// The table: a row a model, a column a format.
pub(crate) fn table(cells: &[Cell], about: &About<'_>) -> String {
    let Some(first) = cells.first() else { return String::new() };
    let mut out =
        format!("{}\n", paint(&format!("{}, with {}", about.machine.name, first.engine.name()), Style::new().bold()));
    let mut rows = vec![["model", "size", "as stored", "8 bits", "4 bits"].map(str::to_owned).to_vec()];
    let mut at = 0;
    while at < cells.len() {
        let of = cells[at..].iter().take_while(|c| c.model == cells[at].model).count();
        let row = &cells[at..at + of];
        let by = |held: fn(&Cell) -> bool| row.iter().find(|c| held(c)).map_or("-".to_owned(), words);
        let short = row[0].model.rsplit('/').next().unwrap_or_default();
        rows.push(vec![
            short.to_owned(),
            short_count(row[0].parameters),
            words(&row[0]),
            if row.len() > 1 { by(|c| (7.0..16.0).contains(&c.bits)) } else { "-".into() },
            if row.len() > 1 { by(|c| c.bits < 7.0) } else { "-".into() },
        ]);
        at += of;
    }
    out += &indented(&columns::lines(&rows, &[Side::Left, Side::Right]), 2);
    out += &format!(
        "\neach: time at most, longest sequence that fits (16k is 16384)\n\
         in brackets: later than {}; memory alone: the leanest run at {} tokens\n",
        about.limit, first.seq
    );
    if let Some(assumed) = &about.assumed {
        out += &format!("assumed: {assumed}\n");
    }
    out
}

/// A cell in a few words.
fn words(cell: &Cell) -> String {
    let (text, colour) = match (&cell.total_time_s, cell.longest_seq) {
        (Some(time), Some(longest)) => {
            let text = format!("{} {}", hours(time.high), tokens(longest));
            if cell.in_time { (text, AnsiColor::Green) } else { (format!("({text})"), AnsiColor::Yellow) }
        }
        _ => (cell.least_memory_bytes.to_string(), AnsiColor::Red),
    };
    paint(&text, Style::new().fg_color(Some(colour.into())))
}

/// A length short enough for a cell: `16k` for 16384.
fn tokens(n: usize) -> String {
    if n.is_multiple_of(1024) { format!("{}k", n / 1024) } else { n.to_string() }
}

/// A time short enough for a cell.
fn hours(time: Seconds) -> String {
    match time.hours() {
        h if h < 1.0 => format!("{:.0} min", 60.0 * h),
        h if h < 9.95 => format!("{h:.1} h"),
        h if h < 100.0 => format!("{h:.0} h"),
        h => format!("{:.0} d", h / 24.0),
    }
}
