//! A stacked bar against a limit, with its legend.

use anstyle::{AnsiColor, Style};

use crate::report::layout::{columns, paint};
use crate::units::Bytes;

/// One piece of a stacked bar.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Name of the piece in the legend.
    pub name: String,
    /// Size of the piece, bytes: its length in the bar.
    pub bytes: Bytes,
}

/// Neighbouring pieces differ in shade as well as in colour, so that the bar reads without colours.
const SHADES: [char; 4] = ['█', '▓', '▒', '░'];
const COLOURS: [AnsiColor; 6] =
    [AnsiColor::Blue, AnsiColor::Cyan, AnsiColor::Green, AnsiColor::Yellow, AnsiColor::Magenta, AnsiColor::BrightBlue];

/// Pieces shown by name; the smaller ones are one piece.
const NAMED: usize = 6;

/// A bar of pieces, what they may grow to, and where the limit is.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pieces: Vec<Piece>,
    high: Bytes,
    limit: Bytes,
}

impl Bar {
    /// A bar of pieces that sum to the most likely value, with its upper bound and the limit.
    pub(crate) fn new(mut pieces: Vec<Piece>, high: Bytes, limit: Bytes) -> Self {
        pieces.retain(|p| p.bytes > Bytes(0));
        if pieces.len() > NAMED {
            let rest = pieces.split_off(NAMED - 1);
            pieces.push(Piece { name: format!("{} more", rest.len()), bytes: rest.iter().map(|p| p.bytes).sum() });
        }
        Self { pieces, high, limit }
    }

    fn look(i: usize) -> (char, Style) {
        (SHADES[i % SHADES.len()], Style::new().fg_color(Some(COLOURS[i % COLOURS.len()].into())))
    }

    /// The bar, at most `width` columns wide: pieces, dots up to the upper bound, and `┃` at the limit.
    pub(crate) fn line(&self, width: usize) -> String {
        let point: Bytes = self.pieces.iter().map(|p| p.bytes).sum();
        let scale = self.high.max(point).max(self.limit).as_f64().max(1.0);
        let column = |bytes: Bytes| (bytes.as_f64() / scale * (width - 1) as f64).round() as usize;
        let limit = column(self.limit);
        let mut cells: Vec<(char, Style)> = vec![(' ', Style::new()); width];
        let mut from = Bytes(0);
        for (i, piece) in self.pieces.iter().enumerate() {
            let to = from + piece.bytes;
            cells[column(from)..column(to)].fill(Self::look(i));
            from = to;
        }
        if self.high > from {
            cells[column(from)..column(self.high)].fill(('·', Style::new().dimmed()));
        }
        let over = self.high > self.limit;
        let mark = if over { AnsiColor::Red } else { AnsiColor::Green };
        cells[limit] = ('┃', Style::new().bold().fg_color(Some(mark.into())));
        let end = cells.iter().rposition(|(c, _)| *c != ' ').map_or(0, |i| i + 1);
        let mut line = String::new();
        // Runs of one look are painted together.
        for run in cells[..end].chunk_by(|a, b| a == b) {
            line += &paint(&run.iter().map(|(c, _)| *c).collect::<String>(), run[0].1);
        }
        line
    }

    /// The legend of the pieces, in as many columns as fit into `width`.
    pub(crate) fn legend(&self, width: usize) -> Vec<String> {
        let widest = self.pieces.iter().map(|p| p.name.chars().count()).max().unwrap_or(0).max(14);
        let entries = self.pieces.iter().enumerate().map(|(i, p)| {
            let (shade, style) = Self::look(i);
            (format!("{} {:<widest$} {:>8}", paint(&shade.to_string(), style), p.name, p.bytes), widest + 11)
        });
        columns(entries.collect(), width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::layout::printable;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(&printable(text)).to_string()
    }

    fn pieces(sizes: &[u64]) -> Vec<Piece> {
        sizes.iter().map(|&n| Piece { name: format!("p{n}"), bytes: Bytes(n) }).collect()
    }

    #[test]
    fn the_bar_is_to_scale() {
        let bar = Bar::new(pieces(&[50, 25]), Bytes(85), Bytes(100));
        assert_eq!(plain(&bar.line(21)), "██████████▓▓▓▓▓··   ┃");
        let over = Bar::new(pieces(&[50, 25]), Bytes(100), Bytes(60));
        assert_eq!(plain(&over.line(21)), "██████████▓▓┃▓▓·····");
    }

    #[test]
    fn many_small_pieces_become_one() {
        let bar = Bar::new(pieces(&[90, 80, 70, 60, 50, 4, 3, 2]), Bytes(400), Bytes(400));
        let legend = bar.legend(80).iter().map(|l| plain(l)).collect::<Vec<_>>().join("\n");
        assert!(legend.contains("3 more") && legend.contains("9 B"), "{legend}");
    }
}
