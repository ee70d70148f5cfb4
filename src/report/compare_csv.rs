//! The runs of a report as a table.

use crate::report::compare::*;

/// The comparisons of all runs as a table for machines.
pub(crate) fn csv(runs: &[RunReport]) -> (Vec<String>, Vec<Vec<String>>) {
    let header = ["run", "quantity", "unit", "predicted", "low", "high", "level", "measured", "error", "inside"];
    let mut rows = Vec::new();
    for run in runs {
        for c in run.comparisons() {
            let p = c.predicted;
            let text = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
            rows.push(vec![
                run.name.clone(),
                c.quantity.name().into(),
                c.quantity.unit().into(),
                p.point.to_string(),
                p.low.to_string(),
                p.high.to_string(),
                p.level.to_string(),
                text(c.measured),
                text(c.error()),
                c.inside().map(|i| i.to_string()).unwrap_or_default(),
            ]);
        }
    }
    (header.map(String::from).to_vec(), rows)
}

/// A message without the folders of this machine: of every path that begins at a root the last part is left.
pub(super) fn without_folders(message: &str) -> String {
    let mut out = String::new();
    for (i, part) in message.split('`').enumerate() {
        if i > 0 {
            out.push('`');
        }
        // A path in quotes may hold anything; elsewhere it ends with its word.
        let quoted = i % 2 == 1 && part.starts_with('/');
        let ends = |c: char| !quoted && (c.is_whitespace() || "\"'(),;:=<[".contains(c));
        for word in part.split_inclusive(ends) {
            let path = word.trim_end_matches(ends);
            out += last_part(path);
            out += &word[path.len()..];
        }
    }
    out
}

/// The last part of a word that is a path from a root; any other word as it is.
fn last_part(word: &str) -> &str {
    let from_root = word.starts_with('/') && !word.starts_with("//");
    let last = word.trim_end_matches('/').rsplit('/').next();
    last.filter(|last| from_root && !last.is_empty()).unwrap_or(word)
}
