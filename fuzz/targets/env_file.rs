//! `.env`: what is read can be written and read again, and a mistake tells no value.
#![no_main]

use std::fmt::Write;

use pilotlight::catalog::env_file::parse;
use pilotlight_fuzz::{shown, target};

/// A value that no message has.
const SECRET: &str = "hunter2";

target!(|bytes| {
    let told = match parse(bytes) {
        Ok(file) => {
            let mut written = String::new();
            for (name, value) in &file.variables {
                writeln!(written, "{name}=\"{}\"", escaped(value)).expect("a text");
            }
            let again = parse(written.as_bytes()).expect("what was read can be written");
            assert_eq!(again.variables, file.variables, "changed");
            file.warnings
        }
        Err(mistakes) => mistakes,
    };
    let text = String::from_utf8_lossy(bytes);
    // a message has the name of its variable
    let mut names = text.lines().filter_map(|line| Some(line.split_once('=')?.0));
    let is_name = names.any(|name| name.contains(SECRET));
    for mistake in told {
        let mistake = mistake.to_string();
        shown(&mistake);
        assert!(is_name || !mistake.contains(SECRET), "a value is told: {mistake}");
    }
});

fn escaped(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' | '"' | '$' => text.extend(['\\', c]),
            c => text.push(c),
        }
    }
    text
}
