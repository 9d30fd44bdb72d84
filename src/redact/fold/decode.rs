//! Escapes within a text: percent-encoding (RFC 3986), HTML character references, the escapes of JSON and
//! of regular expressions, quoted-printable (RFC 2045).

use super::{View, ViewWriter};

/// Most bytes of a character in UTF-8.
const CHAR_BYTES_MAX: usize = 4;

/// Named character references of HTML: ASCII punctuation, spaces, and characters without a shape.
const NAMES: [(&str, char); 46] = [
    ("amp", '&'),
    ("apos", '\''),
    ("ast", '*'),
    ("bsol", '\\'),
    ("colon", ':'),
    ("comma", ','),
    ("commat", '@'),
    ("dash", '-'),
    ("deg", '\u{b0}'),
    ("dollar", '$'),
    ("emsp", ' '),
    ("ensp", ' '),
    ("equals", '='),
    ("excl", '!'),
    ("grave", '`'),
    ("gt", '>'),
    ("hat", '^'),
    ("hyphen", '-'),
    ("lbrack", '['),
    ("lcub", '{'),
    ("lowbar", '_'),
    ("lpar", '('),
    ("lsqb", '['),
    ("lt", '<'),
    ("mdash", '-'),
    ("minus", '-'),
    ("nbsp", ' '),
    ("ndash", '-'),
    ("newline", '\n'),
    ("num", '#'),
    ("percnt", '%'),
    ("period", '.'),
    ("plus", '+'),
    ("quest", '?'),
    ("quot", '"'),
    ("rbrack", ']'),
    ("rcub", '}'),
    ("rpar", ')'),
    ("rsqb", ']'),
    ("semi", ';'),
    ("shy", '\u{ad}'),
    ("sol", '/'),
    ("tab", '\t'),
    ("verbar", '|'),
    ("zwj", '\u{200d}'),
    ("zwnj", '\u{200c}'),
];
/// The longest of these names.
const NAME_BYTES_MAX: usize = 7;

/// Which escapes are decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Escapes {
    /// All but those of quoted-printable.
    Common,
    /// All.
    QuotedPrintable,
}

/// Whether the text may hold such escapes; with [`Escapes::QuotedPrintable`], escapes of that kind.
pub(super) fn has_escapes(text: &str, escapes: Escapes) -> bool {
    match escapes {
        Escapes::Common => text.bytes().any(|byte| matches!(byte, b'%' | b'&' | b'\\')),
        Escapes::QuotedPrintable => {
            text.match_indices('=').any(|(at, _)| quoted_printable(&text[at..]).is_some())
        }
    }
}

/// What an escape stands for, and its length.
struct Escape {
    bytes: usize,
    /// None for an escape that only breaks a line.
    c: Option<char>,
}

impl Escape {
    fn of(bytes: usize, c: char) -> Escape {
        Escape { bytes, c: Some(c) }
    }
}

/// The text with each escape decoded once; none if it has none.
pub(super) fn decode(text: &str, before: Option<&View>, escapes: Escapes) -> Option<View> {
    let mut writer: Option<ViewWriter<'_>> = None;
    let mut kept = 0;
    let mut at = 0;
    let bytes = text.as_bytes();
    // each turn takes at least one byte
    while let Some(next) = bytes[at..].iter().position(|b| matches!(b, b'%' | b'&' | b'\\' | b'='))
    {
        at += next;
        let rest = &text[at..];
        let decoded = match bytes[at] {
            b'%' => percent(rest),
            b'&' => reference(rest),
            b'\\' => backslash(rest),
            _ if escapes == Escapes::QuotedPrintable => quoted_printable(rest),
            _ => None,
        };
        let Some(Escape { bytes: length, c }) = decoded else {
            at += 1;
            continue;
        };
        let writer = writer.get_or_insert_with(|| ViewWriter::new(text, before));
        writer.keep(kept..at);
        let mut utf8 = [0; CHAR_BYTES_MAX];
        writer.put(&(at..at + length), c.map_or("", |c| c.encode_utf8(&mut utf8)));
        at += length;
        kept = at;
    }
    let mut writer = writer?;
    writer.keep(kept..text.len());
    writer.done()
}

/// The number of `digits` hexadecimal digits at the beginning of the text.
fn hex(text: &str, digits: usize) -> Option<u32> {
    let digits = text.get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, 16).ok()
}

/// `%40`, `%EF%BC%A0`, `%u0040`; a byte that is not UTF-8 is taken for Latin-1.
fn percent(text: &str) -> Option<Escape> {
    if let Some(rest) = text.strip_prefix("%u") {
        return Some(Escape::of(6, char::from_u32(hex(rest, 4)?)?));
    }
    in_bytes(text, '%')
}

/// The character of bytes that are written as `mark` and two hexadecimal digits each.
fn in_bytes(text: &str, mark: char) -> Option<Escape> {
    let byte = |n: usize| {
        let part = text.get(3 * n..)?.strip_prefix(mark)?;
        u8::try_from(hex(part, 2)?).ok()
    };
    let first = byte(0)?;
    let bytes: Vec<u8> = (0..CHAR_BYTES_MAX).map_while(byte).collect();
    let found = bytes.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next());
    Some(match found {
        Some(c) => Escape::of(3 * c.len_utf8(), c),
        None => Escape::of(3, char::from(first)),
    })
}

/// `&#64;`, `&#x40;`, `&commat;`; a number needs no semicolon, as in HTML.
fn reference(text: &str) -> Option<Escape> {
    let rest = &text[1..];
    if let Some(number) = rest.strip_prefix('#') {
        let (digits, radix, head) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16, 3),
            None => (number, 10, 2),
        };
        let length = digits.bytes().take_while(|b| char::from(*b).is_digit(radix)).count();
        let c = char::from_u32(u32::from_str_radix(&digits[..length], radix).ok()?)?;
        let end = usize::from(digits[length..].starts_with(';'));
        return Some(Escape::of(head + length + end, c));
    }
    let end = rest.bytes().take(NAME_BYTES_MAX + 1).position(|b| b == b';')?;
    let name = rest[..end].to_ascii_lowercase();
    let at = NAMES.binary_search_by(|(known, _)| (*known).cmp(&name)).ok()?;
    Some(Escape::of(end + 2, NAMES[at].1))
}

/// `\u0040`, `\u{40}`, `\x40`, `\U00000040`, `\n`, and a backslash before punctuation, as in JSON, in
/// programs, in Markdown and in regular expressions.
fn backslash(text: &str) -> Option<Escape> {
    let rest = &text[1..];
    let first = rest.chars().next()?;
    let after = &rest[first.len_utf8()..];
    let of = |bytes: usize, code: u32| char::from_u32(code).map(|c| Escape::of(bytes, c));
    match first {
        'u' if after.starts_with('{') => {
            let end = after.bytes().take(8).position(|b| b == b'}')?;
            of(end + 3, hex(&after[1..end], end - 1)?)
        }
        'u' => {
            let high = hex(after, 4)?;
            let low = after[4..].strip_prefix("\\u").and_then(|low| hex(low, 4));
            match (high, low) {
                // a pair of surrogates (RFC 8259, section 7)
                (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) => {
                    of(12, 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
                }
                (_, _) => of(6, high),
            }
        }
        'U' => of(10, hex(after, 8)?),
        'x' => of(4, hex(after, 2)?),
        'n' => Some(Escape::of(2, '\n')),
        't' => Some(Escape::of(2, '\t')),
        'r' => Some(Escape::of(2, '\r')),
        '\n' => Some(Escape { bytes: 2, c: None }),
        c if c.is_ascii_punctuation() => Some(Escape::of(2, c)),
        _ => None,
    }
}

/// `=40`, and a line break that is none. A letter or digit that is written so is not decoded: `x=49` is
/// far more often a number.
fn quoted_printable(text: &str) -> Option<Escape> {
    for line_end in ["=\r\n", "=\n"] {
        if text.starts_with(line_end) {
            return Some(Escape { bytes: line_end.len(), c: None });
        }
    }
    let is_meant = |c: char| c == ' ' || c.is_ascii_punctuation() || !c.is_ascii();
    in_bytes(text, '=').filter(|decoded| decoded.c.is_some_and(is_meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_in_order() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(NAMES.iter().map(|(name, _)| name.len()).max(), Some(NAME_BYTES_MAX));
    }

    #[test]
    fn incomplete_escapes_are_text() {
        let texts =
            ["%", "%4", "%u12", "&", "&#", "&#x;", "&amp", "&nosuch;", "\\", "\\u00", "\\ud835"];
        for text in texts {
            for text in [text.to_owned(), format!("{text}\u{fc}"), format!("\u{fc}{text} x")] {
                let decoded = decode(&text, None, Escapes::QuotedPrintable);
                assert!(decoded.is_none(), "{text:?}: {:?}", decoded.map(|view| view.text));
            }
        }
        for text in ["=", "=4", "=49", "=\u{fc}", "x=0301234567"] {
            assert!(!has_escapes(text, Escapes::QuotedPrintable), "{text:?}");
        }
    }
}
