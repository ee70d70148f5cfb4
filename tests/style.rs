//! Every help text and every message is held to `docs/style.md`: the words that are not used are read from its table.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests too

mod sources;

use std::path::Path;

use clap::{Command, CommandFactory};
use headroom::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The words of the column "not" in the page's table of terms.
fn unwanted() -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/style.md")).unwrap();
    let rows = page.lines().skip_while(|l| !l.starts_with("| say")).skip(2).take_while(|l| l.starts_with('|'));
    let not = |row: &str| row.trim_matches('|').split('|').nth(1).unwrap().to_owned();
    rows.flat_map(|row| not(row).split(',').map(|w| w.trim().to_owned()).collect::<Vec<_>>()).collect()
}

/// The first unwanted phrase in a text, as whole words.
fn found<'a>(text: &str, unwanted: &'a [String]) -> Option<&'a String> {
    let text = text.to_lowercase();
    unwanted.iter().find(|phrase| {
        text.match_indices(phrase.as_str()).any(|(at, _)| {
            let outside = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            outside(text[..at].chars().next_back()) && outside(text[at + phrase.len()..].chars().next())
        })
    })
}

/// Every help text of a command and those below it, with where it stands.
fn helps(command: &Command, path: &str, texts: &mut Vec<(String, String)>) {
    let path = format!("{path} {}", command.get_name());
    texts.extend(command.get_about().map(|text| (path.clone(), text.to_string())));
    for arg in command.get_arguments() {
        let name = format!("{path} {}", arg.get_id());
        texts.extend(arg.get_help().map(|text| (name.clone(), text.to_string())));
        texts.extend(arg.get_help_heading().map(|text| (name.clone(), text.to_owned())));
        let values = arg.get_possible_values();
        texts.extend(values.iter().filter_map(|v| Some((name.clone(), v.get_help()?.to_string()))));
    }
    command.get_subcommands().for_each(|sub| helps(sub, &path, texts));
}

fn all_helps() -> Vec<(String, String)> {
    let mut texts = Vec::new();
    helps(&Cli::command(), "", &mut texts);
    assert!(texts.len() > 90, "only {} help texts were found", texts.len());
    texts
}

/// The string literals of a source that are prose, with their lines: comments and tests are passed over.
fn literals(source: &str) -> Vec<(usize, String)> {
    let foot = source.find("#[cfg(test)]\nmod tests").unwrap_or(source.len());
    let text: Vec<char> = source[..foot].chars().collect();
    let (mut at, mut line, mut all) = (0, 1, Vec::new());
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(&['/', '/']) {
            at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
        } else if rest[0] == '\'' {
            // A character or a lifetime.
            let end = if rest.get(1) == Some(&'\\') {
                rest.iter().skip(2).position(|c| *c == '\'').map(|n| n + 2)
            } else {
                Some(2)
            };
            at += end.filter(|end| rest.get(*end) == Some(&'\'')).map_or(1, |end| end + 1);
        } else if rest[0] == '"' || rest[0] == 'r' && matches!(rest.get(1), Some('"' | '#')) {
            let hashes = rest.iter().skip(1).take_while(|c| **c == '#').count();
            let raw = rest[0] == 'r';
            let start = if raw { hashes + 2 } else { 1 };
            let closes = |i: usize| {
                rest[i] == '"' && (0..if raw { hashes } else { 0 }).all(|h| rest.get(i + 1 + h) == Some(&'#'))
            };
            let mut end = start;
            while end < rest.len() && !closes(end) {
                end += if !raw && rest[end] == '\\' { 2 } else { 1 };
            }
            let literal: String = rest[start..end.min(rest.len())].iter().collect();
            let lines = literal.matches('\n').count();
            if literal.contains(' ') && literal.chars().filter(|c| c.is_lowercase()).count() > 4 {
                all.push((line, literal));
            }
            line += lines;
            at += end + 1 + if raw { hashes } else { 0 };
        } else {
            line += usize::from(rest[0] == '\n');
            at += 1;
        }
    }
    all
}

#[test]
fn help_texts_and_messages_use_the_fields_words() {
    let unwanted = unwanted();
    assert!(unwanted.len() > 30, "only {} phrases were read from docs/style.md", unwanted.len());
    let mut wrong = Vec::new();
    for (place, text) in all_helps() {
        wrong.extend(found(&text, &unwanted).map(|phrase| format!("{place}: `{phrase}` in \"{text}\"")));
    }
    let mut paths = Vec::new();
    sources::sources(&root().join("src"), &mut paths);
    let mut seen = 0;
    for path in paths.iter().filter(|p| !p.to_string_lossy().ends_with("tests.rs")) {
        for (line, text) in literals(&std::fs::read_to_string(path).unwrap()) {
            seen += 1;
            wrong.extend(
                found(&text, &unwanted).map(|phrase| format!("{}:{line}: `{phrase}` in \"{text}\"", path.display())),
            );
        }
    }
    assert!(seen > 500, "only {seen} messages were found");
    assert!(wrong.is_empty(), "see docs/style.md:\n{}", wrong.join("\n"));
}

#[test]
fn help_texts_are_phrases() {
    let mut wrong = Vec::new();
    for (place, text) in all_helps() {
        if text.ends_with('.') {
            wrong.push(format!("{place}: \"{text}\" ends with a period"));
        }
        if !text.starts_with(|c: char| c.is_uppercase() || c.is_numeric()) {
            wrong.push(format!("{place}: \"{text}\" does not start with a capital"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn errors_start_in_lower_case_and_hold_one_clause() {
    let source = std::fs::read_to_string(root().join("src/error.rs")).unwrap();
    let messages: Vec<&str> = source.split("#[error(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(messages.len() > 25, "only {} errors were found", messages.len());
    for message in messages {
        assert!(!message.starts_with(char::is_uppercase) && !message.trim_end().ends_with('.'), "{message}");
    }
}

#[test]
fn one_option_has_one_meaning() {
    for (place, _) in all_helps() {
        for old in ["budget", "hours", " limit"] {
            assert!(!place.ends_with(old), "{place}");
        }
    }
}

#[test]
fn the_test_sees_what_it_looks_for() {
    let planted = "fn f() { let c = '\"'; say(\"who trains this run\"); say(r#\"a \"raw\" one at its leanest\"#); } // who trains";
    let texts = literals(planted);
    assert_eq!(
        texts.iter().map(|(_, t)| t.as_str()).collect::<Vec<_>>(),
        ["who trains this run", "a \"raw\" one at its leanest"]
    );
    let unwanted = unwanted();
    assert!(texts.iter().all(|(_, text)| found(text, &unwanted).is_some()));
    assert_eq!(found("the budgets of others", &["budget".to_owned()]), None);
}
