//! Wrong files: each is refused with the path, the line and the column, and by the JSON Schema where that
//! can express the rule.

use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::json_schema;
use pilotlight::catalog::mistake::Mistake;
use pilotlight::catalog::read::read;

use super::wrong_parts::Schema::{Accepts, Refuses, Unread};
use super::wrong_parts::{OURS, Schema};

/// Stands before the place that the mistake must have.
const MARK: char = '§';

/// A whole file, the path, a part of the message.
const FILES: &[(&str, &str, &str, Schema)] = &[
    // syntax
    ("§", "mcp.json", "the file is empty", Unread),
    (" \n\t§", "mcp.json", "the file is empty", Unread),
    ("{\n  \"mcpServers\": {}§,\n}", "mcp.json", "a comma before `}`", Unread),
    ("{\"a\": [1, 2§, ]}", "a", "a comma before `]`", Unread),
    ("{\"a\": [1,§, 2]}", "a", "a comma too many", Unread),
    ("{§, \"a\": 1}", "mcp.json", "a comma too many", Unread),
    ("{\n  §// models\n  \"a\": 1}", "mcp.json", "a comment", Unread),
    ("{\"a\": §/* b */ 1}", "a", "a comment", Unread),
    ("{\"a\": 1 §# b\n}", "mcp.json", "a comment", Unread),
    ("{\"a\": §/* b 1}", "a", "a comment that is not closed", Unread),
    ("{\"a\": §'b'}", "a", "a text in other than double quotes", Unread),
    ("{§'a': 1}", "mcp.json", "a key in other than double quotes", Unread),
    ("{\"a\": §“b”}", "a", "a text in other than double quotes", Unread),
    ("{\"a\": §'b\n}", "a", "not closed in its line", Unread),
    ("{§a: 1}", "mcp.json", "a key must be in double quotes", Unread),
    ("{§a\": 1}", "mcp.json", "a key must be in double quotes", Unread),
    ("{\"a\": §b, \"c\": 1}", "a", "a text must be in double quotes", Unread),
    ("{\"a\": §True}", "a", "the word true", Unread),
    ("{\"a\": §None}", "a", "the word null", Unread),
    ("{\"a\": §NaN}", "a", "no such number", Unread),
    ("{\"a\": §b\", \"c\": 1}", "a", "a text must be in double quotes", Unread),
    ("{\n  \"a\": §\"b,\n  \"c\": 1\n}", "a", "not closed in its line", Unread),
    ("{\"a\": \"b§\tc\"}", "a", "write \\t", Unread),
    ("{\"a\": \"b§\u{1}c\"}", "a", "write \\u0001", Unread),
    ("{\"a\": \"C:§\\dir\"}", "a", "a backslash is written \\\\", Unread),
    ("{\"a\": \"§\\u12g4\"}", "a", "four digits", Unread),
    ("{\"a\": \"x§\\ud800y\"}", "a", "half of a surrogate pair", Unread),
    ("{\"a\": \"§\\ud800\\u0041\"}", "a", "half of a surrogate pair", Unread),
    ("{\"a\": \"§\\udc00\"}", "a", "half of a surrogate pair", Unread),
    ("{\"§\\udfff\": 1}", "mcp.json", "half of a surrogate pair", Unread),
    ("{\"a\": 1§ \"b\": 2}", "mcp.json", "a comma is missing", Unread),
    ("{\"a\": [1§ 2]}", "a", "a comma is missing", Unread),
    ("{\"a\": 1§; \"b\": 2}", "mcp.json", "write a comma", Unread),
    ("{\"a\"§ 1}", "a", "`:` is missing", Unread),
    ("{\"a\" §= 1}", "a", "write `:`", Unread),
    ("{\"a\"§}", "a", "the key has no value", Unread),
    ("{\"a\": §}", "a", "a value is missing", Unread),
    ("{\"a\": [1§: 2]}", "a", "an object with keys", Unread),
    ("{\"a\": §01}", "a", "not a number of JSON", Unread),
    ("{\"a\": §+1}", "a", "not a number of JSON", Unread),
    ("{\"a\": §.5}", "a", "not a number of JSON", Unread),
    ("{\"a\": §1.}", "a", "not a number of JSON", Unread),
    ("{\"a\": §0x1f}", "a", "not a number of JSON", Unread),
    ("{\"a\": §1_000}", "a", "not a number of JSON", Unread),
    ("{\"a\": §-}", "a", "not a number of JSON", Unread),
    ("{\"a\":§\u{a0}1}", "a", "U+00A0", Unread),
    ("{\"a\": §@}", "a", "a value is expected, and there is '@'", Unread),
    ("{§[1]: 2}", "mcp.json", "a key in double quotes", Unread),
    (
        "{\"a\": {\n  \"b\": 1§\n",
        "a",
        "the `{` of line 1, column 7 is not closed: `}` is missing",
        Unread,
    ),
    ("{\"a\": [1, 2§", "a", "the `[` of line 1, column 7 is not closed: `]` is missing", Unread),
    ("{\"a\": [1, 2§}", "a", "`}` where `]` must close the `[` of line 1, column 7", Unread),
    ("{\"a\": {\"b\": 1§]}", "a", "`]` where `}` must close the `{` of line 1, column 7", Unread),
    (
        "{\n  \"a\": {\n    \"b\": {\n      \"c\": 1\n  },\n  \"d\": 2\n}§",
        "mcp.json",
        "before line 5, which closes the `{` of line 3, column 10 with another indentation",
        Unread,
    ),
    ("{\n}\n§}", "mcp.json", "`}` too many: what it would close ended in line 2", Unread),
    (
        "{}\n§{}",
        "mcp.json",
        "text behind the end of the file's object, which ended in line 1",
        Unread,
    ),
    ("{} §x", "mcp.json", "text behind the end", Unread),
    // what JSON allows
    ("§[]", "mcp.json", "must be a JSON object", Refuses),
    ("§null", "mcp.json", "must be a JSON object", Refuses),
    ("§{}", "mcpServers", "is required", Refuses),
    ("{§\"mcpServers\": {}}", "mcpServers", "has 0 entries", Refuses),
    ("{§\"mcpServers\": null}", "mcpServers", "is required", Refuses),
    (
        "{\"mcpServers\": {\"a\": {\"command\": \"x\"}}, §\"inputs\": []}",
        "inputs",
        "unknown key",
        Refuses,
    ),
    (
        "{\"mcpServers\": {\"a\": {\"command\": \"x\"}}, §\"servers\": {}}",
        "servers",
        "unknown key",
        Refuses,
    ),
    (
        "{§\"$schema\": 5, \"mcpServers\": {\"a\": {\"command\": \"x\"}}}",
        "$schema",
        "the JSON Schema",
        Refuses,
    ),
    (
        "{\"servers\": {\"a\": {§\"comand\": \"x\"}}}",
        "servers.a.comand",
        "the nearest is `command`",
        Refuses,
    ),
    (
        "{\"mcpServers\": {\"a\": {§\"disabled\": false}}}",
        "mcpServers.a.disabled",
        "unknown field",
        Refuses,
    ),
    ("{\"mcpServers\": {§\"a\": {}}}", "mcpServers.a", "needs either command", Refuses),
    (
        "{\"mcpServers\": {§\"a\": {\"command\": \"x\", \"url\": \"https://y\"}}}",
        "mcpServers.a",
        "not both",
        Refuses,
    ),
    (
        "{\"mcpServers\": {§\"a\": {\"url\": \"ftp://y\"}}}",
        "mcpServers.a",
        "url must start with",
        Refuses,
    ),
    (
        "{\"mcpServers\": {§\"a\": {\"type\": \"mqtt\"}}}",
        "mcpServers.a",
        "needs the topic",
        Refuses,
    ),
    (
        "{\"mcpServers\": {§\"a\": {\"type\": \"mqtt\", \"topic\": \"a//b\"}}}",
        "mcpServers.a",
        "topic must consist of levels",
        Refuses,
    ),
    (
        "{\"mcpServers\": {§\"a\": {\"type\": \"sse\", \"url\": \"https://y\"}}}",
        "mcpServers.a",
        "has been replaced",
        Refuses,
    ),
    (
        "{\"mcpServers\": {\"ä日🙂\": {\"command\": \"x\", §\"args\": 5}}}",
        "mcpServers.ä日🙂.args",
        "invalid type",
        Refuses,
    ),
    (
        "{\"mcpServers\": {\"a\": {\"command\": \"x\", \"args\": [\"y\",\r\n\t§7]}}}",
        "mcpServers.a.args[1]",
        "invalid type",
        Refuses,
    ),
    (
        "{\"mcpServers\": {\"a\": {\"command\": \"x\", \"env\": {\"A\": \"b\", §\"B\": 1}}}}",
        "mcpServers.a.env.B",
        "invalid type",
        Refuses,
    ),
    (
        "{\"mcpServers\": {\"a\": {\"command\": \"x\", \"args\": [§\"${NOT_SET}\"]}}}",
        "mcpServers.a.args[0]",
        "the variable NOT_SET is not set",
        Accepts,
    ),
    (
        "{\"mcpServers\": {\"a\": {\"command\": \"x\"}},\n\n§\"mcpServers\": {\"b\": {\"command\": \"x\"}}}",
        "mcpServers",
        "is there twice, the first time in line 1",
        Accepts,
    ),
    (
        "{\"mcpServers\": {\"a\": {\"command\": \"x\",\n §\"\\u0063ommand\": \"y\"}}}",
        "mcpServers.a.command",
        "is there twice, the first time in line 1",
        Accepts,
    ),
];

/// The line and column of the last mark, and the text without marks.
fn unmarked(text: &str) -> (String, usize, usize) {
    let before = &text[..text.rfind(MARK).expect("no mark")].replace(MARK, "");
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (text.replace(MARK, ""), line, column)
}

fn check(text: &str, path: &str, words: &str, by_schema: Schema) {
    let (text, line, column) = unmarked(text);
    let (_, found) = read(&text, &Variables::new());
    let fits = |mistake: &&Mistake| mistake.path == path && mistake.message.contains(words);
    let mistake = found.iter().find(fits).unwrap_or_else(|| panic!("{text}\nhas {found:#?}"));
    let place = mistake.place.as_ref().expect("no place");
    assert_eq!((place.line, place.column), (line, column), "{text}\n{mistake}");
    let value = serde_json::from_str(&text);
    assert_eq!(value.is_err(), by_schema == Unread, "{text}");
    if let Ok(value) = value {
        let is_valid = jsonschema::is_valid(&json_schema::value(), &value);
        assert_eq!(is_valid, by_schema == Accepts, "{text}");
    }
}

#[test]
fn each_mistake_has_its_path_line_and_column() {
    assert!(FILES.len() + OURS.len() > 120);
    for (text, path, words, by_schema) in FILES {
        check(text, path, words, *by_schema);
    }
    for (ours, path, words, by_schema) in OURS {
        let text = format!(
            "{{\n  \"mcpServers\": {{\"a\": {{\"command\": \"x\"}}}},\n  \"pilotlight\": {{{ours}}}\n}}\n"
        );
        check(&text, &format!("pilotlight.{path}"), words, *by_schema);
    }
}

#[test]
fn one_run_names_all_mistakes_of_syntax() {
    let text =
        "{\n// models\n'mcpServers': {\"a\": {\"command\": \"x\",},},\n\"b\": True\n\"c\": .5\n}";
    let (_, found) = read(text, &Variables::new());
    let lines: Vec<usize> = found.iter().filter_map(|m| m.place.as_ref()).map(|p| p.line).collect();
    assert_eq!(lines, [2, 3, 3, 3, 4, 4, 5], "{found:#?}");
}

#[test]
fn values_that_may_be_secrets_are_not_in_messages() {
    for text in [
        "{\"token\": hunter2}",
        "{\"token\": 'hunter2'}",
        "{\"token\": \"hunter2}",
        "{\"token\": hunter2\", \"a\": 1}",
        "{\"token\": 0hunter2}",
        "{\"token\": \"\\hunter2\"}",
        "{\"token\" hunter2}",
    ] {
        let (_, found) = read(text, &Variables::new());
        assert!(!found.is_empty() && !format!("{found:?}").contains("hunter2"), "{found:?}");
    }
}

#[test]
fn a_file_is_nested_no_deeper_than_its_bound() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let deep = |levels: usize| read(&nested(levels), &Variables::new()).1;
    assert!(deep(36)[0].message.contains("must be a JSON object"));
    for levels in [37, 10_000, 300_000] {
        let found = deep(levels);
        assert!(found[0].message.contains("at most 36 levels"), "{found:?}");
        let place = found[0].place.as_ref().unwrap();
        assert_eq!((found.len(), place.line, place.column), (1, 1, 37));
    }
}

#[test]
fn the_number_of_mistakes_is_bounded() {
    for text in [
        format!("[{}]", ",".repeat(500_000)),
        format!("{{\"pilotlight\": {{{}\"a\": 1}}}}", "\"a\": 1,".repeat(100_000)),
        format!(
            "{{\"mcpServers\": {{\"a\": {{{}}}}}}}",
            (0..6_000).map(|n| format!("\"{n}\":1")).collect::<Vec<_>>().join(",")
        ),
        format!("{{\"{}\": [{}]}}", "k".repeat(400_000), "01,".repeat(100_000)),
    ] {
        let (_, found) = read(&text, &Variables::new());
        let bytes: usize = found.iter().map(|m| m.path.len() + m.message.len()).sum();
        assert!(found.len() <= 201 && bytes < 1024 * 1024, "{} with {bytes} bytes", found.len());
        assert!(found.last().unwrap().message.contains("there may be more mistakes"));
    }
}
