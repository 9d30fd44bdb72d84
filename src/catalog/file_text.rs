//! The text of files that people edit: UTF-8, with or without the byte order mark of some editors.

/// The byte order mark in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// The byte order marks of UTF-16, which some editors call Unicode.
const UTF_16: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// The text of a file, without a byte order mark at its head.
///
/// # Errors
/// A message with the first line that is not UTF-8, and without its content.
pub fn decode(bytes: &[u8]) -> Result<&str, String> {
    if UTF_16.iter().any(|mark| bytes.starts_with(mark)) {
        return Err("is UTF-16; save it as UTF-8".to_owned());
    }
    let bytes = bytes.strip_prefix(MARK).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.split(|byte| *byte == b'\n').count();
        format!("is not UTF-8 in line {line}; save it as UTF-8")
    })
}

/// The bytes of a PEM file without byte order marks. Files that were joined have one in the middle, and
/// a mark before `-----BEGIN` conceals the whole section.
pub fn without_marks(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    // bounded: each turn consumes at least one byte
    while !rest.is_empty() {
        let (byte, after) = match rest.strip_prefix(MARK) {
            Some(after) => (None, after),
            None => (rest.first(), &rest[1..]),
        };
        out.extend(byte);
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_at_the_head_is_left_out() {
        let check = |bytes: &[u8], expected: Result<&str, &str>| match (decode(bytes), expected) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
            (got, want) => panic!("{bytes:?}: {got:?}, expected {want:?}"),
        };
        check(b"a\n", Ok("a\n"));
        check(b"\xef\xbb\xbfa", Ok("a"));
        check(b"a\n\xef\xbb\xbfb", Ok("a\n\u{feff}b"));
        check(b"\xff\xfea\0", Err("UTF-16"));
        check(b"a\nb\nsecret\xff", Err("line 3"));
        assert!(!decode(b"secret\xff").unwrap_err().contains("secret"));
    }

    #[test]
    fn marks_are_left_out_everywhere_in_a_pem_file() {
        let joined = b"\xef\xbb\xbf-----BEGIN A\n\xef\xbb\xbf-----BEGIN B\n\xe9";
        assert_eq!(without_marks(joined), b"-----BEGIN A\n-----BEGIN B\n\xe9");
    }
}
