use std::fs::{self, OpenOptions};
use std::io::Write as _;

use super::*;

pub(super) fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| w.to_string()).collect()
}

#[test]
fn a_file_is_replaced_whole_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/value.json");
    save_json(&path, &vec![1, 2]).unwrap();
    save_json(&path, &vec![3]).unwrap();
    assert_eq!(load_json::<Vec<i32>>(&path).unwrap(), [3]);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn errors_name_the_file_and_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("value.json");
    let error = load_json::<Vec<i32>>(&path).unwrap_err();
    assert!(error.to_string().contains("value.json"), "{error}");
    fs::write(&path, "[1,\n x]").unwrap();
    let error = load_json::<Vec<i32>>(&path).unwrap_err().to_string();
    assert!(error.contains("value.json") && error.contains("line 2"), "{error}");
    let log = dir.path().join("log.jsonl");
    fs::write(&log, "1\n{\n3\n").unwrap();
    let error = read_json_lines::<i32>(&log).unwrap_err().to_string();
    assert!(error.contains("log.jsonl`, line 2"), "{error}");
}

#[test]
fn a_torn_line_is_dropped_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.jsonl");
    assert_eq!(read_json_lines::<String>(&path).unwrap(), Vec::<String>::new());
    append_json(&path, &"one").unwrap();
    // Torn inside a character, after which the file is not even text.
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend("\"zw\u{f6}".as_bytes().split_last().unwrap().1);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(read_json_lines::<String>(&path).unwrap(), ["one"]);
    append_json(&path, &"three").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "\"one\"\n\"three\"\n");
}

#[test]
fn a_torn_line_is_mended_however_long_it_or_the_file_is() {
    let dir = tempfile::tempdir().unwrap();
    for (whole, torn) in [(0, 10), (1, 4095), (2, 4096), (3, 20_000)] {
        let path = dir.path().join(format!("log-{whole}"));
        fs::write(&path, format!("{}{}", "line\n".repeat(whole), "x".repeat(torn))).unwrap();
        append_line(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}new\n", "line\n".repeat(whole)));
    }
}

#[test]
fn a_table_grows_by_rows_and_survives_a_tear() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("here/measurements.csv");
    let header = strings(&["schema", "name"]);
    append_csv(&path, &header, &strings(&["1", "a, \"b\"\nc"])).unwrap();
    append_csv(&path, &header, &strings(&["1", ""])).unwrap();
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"1,\"half").unwrap();
    let (columns, rows) = read_csv(&path).unwrap();
    assert_eq!(columns, header);
    assert_eq!(rows, [strings(&["1", "a, \"b\" c"]), strings(&["1", ""])]);
    append_csv(&path, &header, &strings(&["1", "last"])).unwrap();
    assert_eq!(read_csv(&path).unwrap().1.len(), 3);
}

#[test]
fn a_table_of_another_schema_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("measurements.csv");
    append_csv(&path, &strings(&["schema", "old"]), &strings(&["1", "x"])).unwrap();
    let before = fs::read(&path).unwrap();
    let error = append_csv(&path, &strings(&["schema", "new"]), &strings(&["2", "y"])).unwrap_err();
    let text = error.to_string();
    for expected in ["measurements.csv", "schema `1`", "only there: old", "only here: new"] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(error.hint().is_some());
    assert_eq!(fs::read(&path).unwrap(), before);
    // A torn header is no header: the table starts again.
    fs::write(&path, "sche").unwrap();
    append_csv(&path, &strings(&["schema"]), &strings(&["2"])).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "schema\n2\n");
}

#[test]
fn names_stay_in_their_folder() {
    let cases = [
        ("M2 Pro, 19 GPU cores, 16 GiB", "M2-Pro-19-GPU-cores-16-GiB"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("Qwen/Qwen2.5-0.5B", "Qwen-Qwen2.5-0.5B"),
        (".hidden\0\n", "hidden"),
    ];
    for (name, expected) in cases {
        assert_eq!(file_name(name), expected);
    }
    assert_eq!(file_name(&"x".repeat(500)).len(), 100);
    assert_eq!(file_name(&"\u{4e2d}".repeat(100)).len(), 99);
}

#[test]
fn a_table_for_people_holds_no_formula() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.csv");
    let cases = [
        ("=1+1", "'=1+1"),
        ("=HYPERLINK(0)", "'=HYPERLINK(0)"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+cmd|x", "'+cmd|x"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("\r=1", "' =1"),
        ("-1.5", "-1.5"),
        ("+3e9", "+3e9"),
        ("a=1", "a=1"),
        ("-", "'-"),
        ("", ""),
    ];
    for (cell, expected) in cases {
        write_csv(&path, &strings(&["=name", "n"]), &[strings(&[cell, "1"])]).unwrap();
        let (header, rows) = read_csv(&path).unwrap();
        assert_eq!((header[0].as_str(), rows[0][0].as_str()), ("'=name", expected));
        // What is measured is kept as it is.
        let table = dir.path().join("measurements.csv");
        let cell = cell.replace('\r', " ");
        append_csv(&table, &strings(&["name", "n"]), &strings(&[&cell, "1"])).unwrap();
        assert_eq!(read_csv(&table).unwrap().1.pop().unwrap()[0], cell);
    }
}

proptest::proptest! {
    /// Wherever a log is torn, whole lines before the tear are read, and what is appended comes after them.
    #[test]
    fn a_log_that_is_torn_anywhere_keeps_its_whole_lines(lines in proptest::collection::vec(0u32..1000, 1..8), cut in 0usize..40) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.jsonl");
        lines.iter().for_each(|line| append_json(&log, line).unwrap());
        let text = std::fs::read_to_string(&log).unwrap();
        let torn = &text[..text.len().saturating_sub(cut)];
        std::fs::write(&log, torn).unwrap();
        let whole: Vec<u32> = torn.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(|l| l.trim().parse().unwrap()).collect();
        append_json(&log, &7u32).unwrap();
        let read: Vec<u32> = read_json_lines(&log).unwrap();
        proptest::prop_assert_eq!(read, [whole, vec![7]].concat());
    }
}

#[test]
fn a_text_is_read_without_its_mark_and_what_is_no_utf8_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, b"\xef\xbb\xbf{\"text\": 1}\n").unwrap();
    assert_eq!(read_text(&path).unwrap(), "{\"text\": 1}\n");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        std::error::Error::source(&read_text(&path).unwrap_err()).unwrap().to_string()
    };
    assert!(refused(b"\xff\xfe{\0}\0").contains("UTF-16"), "{}", refused(b"\xff\xfe{\0}\0"));
    assert!(refused(b"one\ntwo\ncaf\xe9\n").contains("line 3 is not UTF-8"), "{}", refused(b"one\ntwo\ncaf\xe9\n"));
}
