use crate::report::compare_csv::without_folders;

#[test]
fn messages_name_no_folder_of_this_machine() {
    for (message, public) in [
        ("cannot write `/home/somebody/my runs/a/state.json`", "cannot write `state.json`"),
        ("exit code 101: thread panicked at /home/somebody/x.rs:12:5", "exit code 101: thread panicked at x.rs:12:5"),
        ("(/Users/somebody/a, path=/Users/somebody/b/)", "(a, path=b)"),
        ("see https://example.com/a/b and/or src/x.rs", "see https://example.com/a/b and/or src/x.rs"),
        ("`headroom launch /home/somebody/r --resume` / nothing", "`headroom launch r --resume` / nothing"),
        ("signal 9", "signal 9"),
    ] {
        assert_eq!(without_folders(message), public);
    }
}
