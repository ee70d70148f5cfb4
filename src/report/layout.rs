//! Text in colours and in columns, and what of it may reach a terminal.
//!
//! Names, templates, model answers and messages of libraries come from files of others, and a terminal obeys what they
//! hold: it changes its title, its clipboard, what is already on the screen. So whatever is printed goes through
//! [`printable`], which shows control characters in the place of sending them. Our own styles are written as
//! characters that Unicode has left unassigned and without width until then, so that tables know how wide a cell is, and
//! become escape sequences there and nowhere else: text that brings such a character along can make itself bold or
//! coloured, and no more.

use std::fmt::Write;

use anstyle::{AnsiColor, Color, Effects, Reset, Style};

const RESET: char = '\u{e0080}';
const BOLD: char = '\u{e0081}';
const DIM: char = '\u{e0082}';
const COLOURS: [(char, AnsiColor); 7] = [
    ('\u{e0083}', AnsiColor::Red),
    ('\u{e0084}', AnsiColor::Green),
    ('\u{e0085}', AnsiColor::Yellow),
    ('\u{e0086}', AnsiColor::Blue),
    ('\u{e0087}', AnsiColor::Magenta),
    ('\u{e0088}', AnsiColor::Cyan),
    ('\u{e0089}', AnsiColor::BrightBlue),
];

/// Text in a style: bold, dimmed and the colours above.
pub(crate) fn paint(text: &str, style: Style) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut marks = String::new();
    let effects = [(Effects::BOLD, BOLD), (Effects::DIMMED, DIM)];
    marks.extend(effects.iter().filter(|(e, _)| style.get_effects().contains(*e)).map(|(_, mark)| mark));
    let colour = style.get_fg_color();
    marks.extend(COLOURS.iter().filter(|(_, c)| colour == Some(Color::Ansi(*c))).map(|(mark, _)| mark));
    if marks.is_empty() { text.to_owned() } else { format!("{marks}{text}{RESET}") }
}

/// Characters of a text that are seen.
pub(crate) fn seen(text: &str) -> usize {
    text.chars().filter(|c| *c != RESET && style(*c).is_none()).count()
}

/// The style that a mark stands for.
fn style(mark: char) -> Option<Style> {
    match mark {
        BOLD => Some(Style::new().bold()),
        DIM => Some(Style::new().dimmed()),
        _ => COLOURS.iter().find(|(m, _)| *m == mark).map(|(_, c)| Style::new().fg_color(Some((*c).into()))),
    }
}

/// Text as a terminal may have it: our styles as escape sequences, and control characters of any other origin shown as
/// `\u{1b}`.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut styled = false;
    for c in text.chars() {
        // Writing to a string cannot fail.
        let _ = match style(c) {
            Some(style) => write!(out, "{style}"),
            None if c == RESET => write!(out, "{Reset}"),
            None if obeyed(c) => write!(out, "{}", c.escape_unicode()),
            None => out.write_char(c),
        };
        styled = if c == RESET { false } else { styled || style(c).is_some() };
    }
    // A mark that nobody ended was not ours.
    if styled {
        let _ = write!(out, "{Reset}");
    }
    out
}

/// JSON as a terminal may have it. Control characters up to U+001F are escaped there already; the others can only stand
/// inside of strings, where the escape means the same.
pub(crate) fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        let _ = if obeyed(c) { write!(out, "\\u{:04x}", u32::from(c)) } else { out.write_char(c) };
    }
    out
}

/// What a terminal acts on: control characters but newline and tab, and what turns the direction of writing, so that a
/// line reads as something else than it says.
fn obeyed(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Entries of known widths, laid out in as many columns as fit.
pub(crate) fn columns(entries: Vec<(String, usize)>, width: usize) -> Vec<String> {
    let widest = entries.iter().map(|(_, w)| *w).max().unwrap_or(1);
    let per_line = ((width + 3) / (widest + 3)).max(1);
    let lines = entries.chunks(per_line);
    lines.map(|line| line.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("   ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What hostile files were seen to hold.
    const HOSTILE: [&str; 10] = [
        "\u{1b}]52;c;Y3VybCBldmlsIHwgc2g=\u{7}", // fills the clipboard
        "\u{1b}]0;a title\u{1b}\\",
        "\u{1b}[2J\u{1b}[H",
        "\u{1b}[8mhidden",
        "\u{9b}31m", // the same begun with one character
        "\u{9d}0;title\u{9c}",
        "all is well\rerror",
        "\u{8}\u{8}\u{7f}",
        "fdp.\u{202e}exe\u{2066}x\u{2069}",
        "\0",
    ];

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        let bad = |c: char| {
            c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c)
        };
        for text in HOSTILE {
            let shown = printable(text);
            assert!(!shown.contains(bad), "{shown:?}");
            assert!(shown.contains("\\u{"), "{shown}");
            // Inside of a style ours are sent, and only ours.
            let painted = printable(&paint(text, Style::new().bold()));
            assert_eq!(painted, format!("\u{1b}[1m{shown}\u{1b}[0m"));
            let json = printable_json(&serde_json::to_string(text).unwrap());
            assert!(!json.contains(bad), "{json:?}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
        let plain = "a line\n\tand one more: é, 中, שלום, 🙂";
        assert_eq!(printable(plain), plain);
    }

    #[test]
    fn styles_become_what_a_terminal_reads() {
        let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        assert_eq!(printable(&paint("x", style)), "\u{1b}[1m\u{1b}[31mx\u{1b}[0m");
        assert_eq!(printable(&paint("x", Style::new())), "x");
        for (_, colour) in COLOURS {
            let style = Style::new().dimmed().fg_color(Some(colour.into()));
            assert_eq!(printable(&paint("x", style)), format!("{style}x{style:#}"));
        }
        // A mark that came with the text ends with it.
        assert_eq!(printable(&format!("{DIM}x")), "\u{1b}[2mx\u{1b}[0m");
    }
}
