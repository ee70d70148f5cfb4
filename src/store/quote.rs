//! Words that a person can type into a shell as they stand.

use std::path::Path;

/// A word in POSIX single quotes where it needs them.
pub(crate) fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// A path, as it is typed; one that begins with a dash would be read as a flag.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    shell_quote(&if text.starts_with('-') { format!("./{text}") } else { text.into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_can_be_typed() {
        let cases = [
            ("runs/my-1.toml", "runs/my-1.toml"),
            ("two words", "'two words'"),
            ("it's", r"'it'\''s'"),
            ("$(rm)", "'$(rm)'"),
            ("new\nline", "'new\nline'"),
            ("größe", "'größe'"),
            ("", "''"),
        ];
        for (word, expected) in cases {
            assert_eq!(shell_quote(word), expected);
            let echo = std::process::Command::new("/bin/sh").args(["-c", &format!("printf %s {expected}")]).output();
            assert_eq!(String::from_utf8(echo.unwrap().stdout).unwrap(), word);
        }
        assert_eq!(quoted(Path::new("-n")), "./-n");
        assert_eq!(quoted(Path::new("my runs/a")), "'my runs/a'");
    }
}
