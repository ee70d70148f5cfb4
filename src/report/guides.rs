//! What guides claim beside what the model says: a table and a page.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::error::Result;
use crate::guides::{Checked, Guide, Verdict};
use crate::report::layout::paint;
use crate::report::page;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

fn colour(verdict: Verdict) -> Style {
    let colour = match verdict {
        Verdict::Right => AnsiColor::Green,
        Verdict::Pessimistic => AnsiColor::Yellow,
        Verdict::Optimistic | Verdict::Impossible => AnsiColor::Red,
    };
    Style::new().fg_color(Some(colour.into()))
}

/// The number of claims with each verdict, as a sentence.
fn count(all: &[Checked]) -> String {
    let of = |verdict| all.iter().filter(|c| c.verdict == verdict).count();
    format!(
        "{} claims: {} right, {} optimistic, {} pessimistic, {} impossible",
        all.len(),
        of(Verdict::Right),
        of(Verdict::Optimistic),
        of(Verdict::Pessimistic),
        of(Verdict::Impossible)
    )
}

/// Guides and their checked claims as text for a terminal.
pub(crate) fn text(guides: &[Guide], all: &[Checked]) -> String {
    let mut out = format!("{}\n", paint(&count(all), BOLD));
    let _ = writeln!(out, "{}", paint("predictions are for mlx-lm; `own trainer` is Headroom's", DIM));
    for guide in guides {
        let _ = write!(out, "\n{}\n", paint(&guide.name, BOLD));
        for c in all.iter().filter(|c| c.guide == guide.key) {
            out += &claim(c);
        }
    }
    out
}

fn claim(c: &Checked) -> String {
    let ours = c.ours.map(|b| format!(", own trainer {:.1} GB", b.decimal_gb())).unwrap_or_default();
    let verdict = paint(&format!("{:<12}", c.verdict.name()), colour(c.verdict));
    format!(
        "{verdict}{}\n            {}\n            claimed {}, predicted {}{ours}\n            {}\n",
        c.what,
        paint(&c.machine, DIM),
        c.says,
        c.model_says,
        paint(&c.why, DIM)
    )
}

#[derive(Serialize)]
struct View {
    title: &'static str,
    answer: String,
    guides: Vec<GuideView>,
    version: &'static str,
}

#[derive(Serialize)]
struct GuideView {
    name: String,
    url: String,
    /// The address is one that may be followed.
    linked: bool,
    claims: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    what: String,
    machine: String,
    says: String,
    model_says: String,
    ours: String,
    verdict: &'static str,
    class: &'static str,
    why: String,
}

const TEMPLATE: &str = include_str!("guides.html");

/// Whether a click on an address opens a page of the web, and does nothing else. Browsers ignore case, and tabs and
/// newlines inside: `java\tscript:` runs.
fn may_be_followed(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let web = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    web && !rest.is_empty() && !url.contains(|c: char| c.is_control() || c.is_whitespace())
}

/// Guides and their checked claims as a page.
pub(crate) fn render(guides: &[Guide], all: &[Checked]) -> Result<String> {
    let row = |c: &Checked| Row {
        what: c.what.clone(),
        machine: c.machine.clone(),
        says: c.says.clone(),
        model_says: c.model_says.clone(),
        ours: c.ours.map(|b| format!("{:.1} GB", b.decimal_gb())).unwrap_or_default(),
        verdict: c.verdict.name(),
        class: if c.verdict == Verdict::Right { "yes" } else { "no" },
        why: c.why.clone(),
    };
    let view = View {
        title: "Claims of guides, checked",
        answer: count(all),
        guides: guides
            .iter()
            .map(|g| GuideView {
                name: g.name.clone(),
                url: g.url.trim().into(),
                linked: may_be_followed(g.url.trim()),
                claims: all.iter().filter(|c| c.guide == g.key).map(row).collect(),
            })
            .collect(),
        version: env!("CARGO_PKG_VERSION"),
    };
    page::fill(TEMPLATE, view)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 4] = [
        "https://example.com/a?b=c#d",
        "http://example.com",
        "HTTPS://example.com/",
        " https://example.com/spaces-around ",
    ];
    const BAD: [&str; 14] = [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\tscript:alert(1)",
        "java\nscript:alert(1)",
        "\u{1}javascript:alert(1)",
        "javascript://example.com/%0aalert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:msgbox(1)",
        "file:///etc/passwd",
        "//example.com",
        "https://",
        "https://example.com/\u{202e}\u{9b}31m",
        "\"><script>alert(1)</script>",
    ];

    #[test]
    fn only_pages_of_the_web_are_linked() {
        let guide = |url: &str| Guide { key: "g".into(), name: "<b>a guide</b>".into(), url: url.into() };
        for url in GOOD {
            let page = render(&[guide(url)], &[]).unwrap();
            assert_eq!(page.matches("<a ").count(), 1, "{url}: {page}");
            assert_eq!(hrefs(&page).len(), 1, "{url}");
        }
        for url in BAD {
            let page = render(&[guide(url)], &[]).unwrap();
            // The address can be read and not followed; and nothing of it is markup.
            assert_eq!((hrefs(&page).len(), page.matches("<a").count()), (0, 0), "{url}: {page}");
            assert!(!page.contains("<script") && !page.contains("<b>"), "{url}");
        }
        assert!(render(&[guide(BAD[0])], &[]).unwrap().contains(">javascript:alert(1)<"));
    }

    /// The addresses that the attributes of a page's elements hold.
    fn hrefs(page: &str) -> Vec<String> {
        let tags = page.split('<').skip(1).filter_map(|rest| rest.split_once('>')).map(|(tag, _)| tag);
        let attributes = tags.flat_map(|tag| {
            ["href=", "src=", "action=", "xlink:href="].into_iter().filter_map(move |name| tag.split_once(name))
        });
        attributes.map(|(_, value)| value.to_owned()).collect()
    }
}
