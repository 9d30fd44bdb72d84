//! Other spellings of a text for matching: Unicode compatibility forms and characters without a shape
//! (UAX 15, UAX 44), and the escapes of URLs, HTML, JSON and quoted-printable.
//!
//! A [`View`] is such a spelling with the origin of each byte, so that a match in it is a range of the
//! text itself. Views are matched in addition to the text: decoding may also destroy a match.

mod decode;

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};
use std::sync::LazyLock;

use icu_normalizer::{ComposingNormalizer, ComposingNormalizerBorrowed};
use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointMapDataBorrowed, CodePointSetData};

use self::decode::Escapes;
use crate::limits::REDACT_DECODINGS_MAX;

const NFKC: ComposingNormalizerBorrowed<'static> = ComposingNormalizer::new_nfkc();
const CATEGORY: CodePointMapDataBorrowed<'static, GeneralCategory> = CodePointMapData::new();

/// One spelling of a text.
pub(super) struct View {
    pub(super) text: String,
    /// Of each byte, the range of the text that it comes from.
    origin: Vec<(u32, u32)>,
}

impl View {
    /// The range of the text itself from which this range of the view comes.
    pub(super) fn source(&self, at: &Range<usize>) -> Range<usize> {
        let (start, end) = (self.origin.get(at.start), self.origin.get(at.end.wrapping_sub(1)));
        let (start, end) = (start.map_or(0, |from| from.0), end.map_or(0, |from| from.1));
        start as usize..end as usize
    }
}

/// The spellings that differ from the text and from each other, at most two for each of
/// [`REDACT_DECODINGS_MAX`] levels.
pub(super) fn views(text: &str) -> Vec<View> {
    let folded = fold(text, None);
    let mut views = Vec::new();
    let base = folded.as_ref().map_or(text, |view| view.text.as_str());
    // `=40` is an at sign in quoted-printable only
    for escapes in [Escapes::Common, Escapes::QuotedPrintable] {
        if !decode::has_escapes(base, escapes) {
            continue;
        }
        let mut last: Option<View> = None;
        for _ in 0..REDACT_DECODINGS_MAX {
            let before = last.as_ref().or(folded.as_ref());
            let Some(decoded) = decode::decode(before.map_or(text, |v| &v.text), before, escapes)
            else {
                break;
            };
            let next = fold(&decoded.text, Some(&decoded)).unwrap_or(decoded);
            views.extend(last.replace(next));
        }
        views.extend(last);
    }
    views.extend(folded);
    views
}

/// A view that is written from front to back.
struct ViewWriter<'v> {
    view: View,
    source: &'v str,
    before: Option<&'v View>,
    has_changed: bool,
}

impl<'v> ViewWriter<'v> {
    fn new(source: &'v str, before: Option<&'v View>) -> ViewWriter<'v> {
        let view = View {
            text: String::with_capacity(source.len()),
            origin: Vec::with_capacity(source.len()),
        };
        ViewWriter { view, source, before, has_changed: false }
    }

    /// Copies this range of the source.
    fn keep(&mut self, at: Range<usize>) {
        self.view.text.push_str(&self.source[at.clone()]);
        match self.before {
            Some(before) => self.view.origin.extend_from_slice(&before.origin[at]),
            None => self.view.origin.extend(at.map(|byte| (offset(byte), offset(byte + 1)))),
        }
    }

    /// Writes these characters for a range of the source.
    fn put(&mut self, at: &Range<usize>, text: &str) {
        let at = self.before.map_or_else(|| at.clone(), |before| before.source(at));
        self.view.text.push_str(text);
        let origin = (offset(at.start), offset(at.end));
        self.view.origin.extend(std::iter::repeat_n(origin, text.len()));
        self.has_changed = true;
    }

    fn done(self) -> Option<View> {
        self.has_changed.then_some(self.view)
    }
}

fn offset(byte: usize) -> u32 {
    u32::try_from(byte).unwrap_or(u32::MAX)
}

/// The text without marks and characters that have no shape, in compatibility composition (NFKC), with
/// ASCII digits, dashes, spaces and quotes; none if that is the text itself.
fn fold(text: &str, before: Option<&View>) -> Option<View> {
    let first = text.find(|c| !is_plain(c))?;
    let mut writer = ViewWriter::new(text, before);
    let mut folded = String::new();
    let mut at = 0;
    let mut run = first;
    // each turn takes at least one character
    while at < text.len() {
        if run > at {
            let has_mark = text[run..].chars().next().is_some_and(is_mark);
            let end = if has_mark { text.floor_char_boundary(run - 1) } else { run };
            writer.keep(at..end);
            at = end;
        }
        let end = cluster_end(text, at);
        if end > at {
            folded.clear();
            fold_cluster(&text[at..end], &mut folded);
            if folded == text[at..end] {
                writer.keep(at..end);
            } else {
                writer.put(&(at..end), &folded);
            }
        }
        at = end;
        run = text[at..].find(|c| !is_plain(c)).map_or(text.len(), |next| at + next);
    }
    writer.done()
}

/// Whether the character is matched as it is, if no mark follows: ASCII, and letters of common scripts
/// (Latin, Greek, Cyrillic, Han) that NFKC leaves alone, for speed.
fn is_plain(c: char) -> bool {
    (c.is_ascii() && !is_control(c))
        || matches!(c, '\u{c0}'..='\u{131}' | '\u{3b1}'..='\u{3cf}')
        || matches!(c, '\u{400}'..='\u{481}' | '\u{4e00}'..='\u{9fff}')
}

/// The end of the character at `at` and of the marks behind it.
fn cluster_end(text: &str, at: usize) -> usize {
    let mut chars = text[at..].char_indices().skip(1);
    let next = chars.find(|(_, c)| c.is_ascii() || !is_mark(*c));
    next.map_or(text.len(), |(end, _)| at + end)
}

fn fold_cluster(cluster: &str, folded: &mut String) {
    let mut chars = cluster.chars();
    if let (Some(c), None) = (chars.next(), chars.next())
        && let Some(like) = ascii_like(c)
    {
        return folded.push(like);
    }
    let normal: Cow<'_, str> = NFKC.normalize(cluster);
    folded.extend(normal.chars().filter_map(fold_char));
}

/// The character as it is matched; none if it has no shape of its own.
fn fold_char(c: char) -> Option<char> {
    if c.is_ascii() {
        return (!is_control(c)).then_some(c);
    }
    if let Some(like) = ascii_like(c) {
        return Some(like);
    }
    if CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c) {
        return None;
    }
    let is = |categories: &[GeneralCategory]| categories.contains(&CATEGORY.get(c));
    if is(&[GeneralCategory::Control, GeneralCategory::Format]) || is_mark(c) {
        None
    } else if is(&[GeneralCategory::DecimalNumber]) {
        Some(digit(c))
    } else if is(&[GeneralCategory::DashPunctuation]) {
        Some('-')
    } else if is(&[GeneralCategory::SpaceSeparator]) {
        Some(' ')
    } else if is(&[GeneralCategory::LineSeparator, GeneralCategory::ParagraphSeparator]) {
        Some('\n')
    } else {
        Some(c)
    }
}

/// The ASCII character that a pattern means by this one, where NFKC knows none or another.
fn ascii_like(c: char) -> Option<char> {
    Some(match c {
        // tag characters: invisible, but a model reads them
        '\u{e0020}'..='\u{e007e}' => char::from_u32(u32::from(c) - 0xe0000)?,
        '\u{3002}' | '\u{ff61}' | '\u{66b}' => '.',
        '\u{60c}' | '\u{66c}' => ',',
        '\u{2212}' | '\u{2010}'..='\u{2015}' => '-',
        '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{3000}' => ' ',
        '\u{2044}' | '\u{2215}' => '/',
        '\u{2018}' | '\u{2019}' | '\u{2032}' | '\u{2bc}' => '\'',
        '\u{201c}'..='\u{201e}' | '\u{2033}' => '"',
        // the masculine ordinal indicator stands for the degree sign
        'º' => '\u{b0}',
        _ => return None,
    })
}

fn is_mark(c: char) -> bool {
    !c.is_ascii()
        && matches!(
            CATEGORY.get(c),
            GeneralCategory::NonspacingMark
                | GeneralCategory::SpacingMark
                | GeneralCategory::EnclosingMark
        )
}

/// Whether this is a control character other than white space.
fn is_control(c: char) -> bool {
    c.is_ascii_control() && !matches!(c, '\t'..='\r')
}

/// The ASCII digit of a decimal digit of any script: Unicode encodes those of a script in ascending
/// order, and each run of them begins with a zero (Unicode Standard, 4.6).
fn digit(c: char) -> char {
    static RUNS: LazyLock<Vec<RangeInclusive<u32>>> =
        LazyLock::new(|| CATEGORY.iter_ranges_for_value(GeneralCategory::DecimalNumber).collect());
    let code = u32::from(c);
    let next = RUNS.partition_point(|run| *run.end() < code);
    let value = RUNS.get(next).map_or(0, |run| code.saturating_sub(*run.start()) % 10);
    char::from_digit(value, 10).unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All spellings of a text.
    fn spelled(text: &str) -> Vec<String> {
        views(text).into_iter().map(|view| view.text).collect()
    }

    #[test]
    fn every_spelling_leads_to_the_same_text() {
        for text in [
            "ann\u{ff20}mail.example",
            "\u{ff41}nn\u{fe6b}mail\u{ff0e}example",
            "ann@\u{ad}ma\u{200b}il.\u{2060}exam\u{feff}ple\u{fe0f}",
            "ann@mail\u{3002}example",
            "a\u{301}nn\u{0}@m\u{34f}ail.exa\u{e0001}mple",
            "\u{e0061}\u{e006e}\u{e006e}\u{e0040}mail.example",
            "ann%40mail%2eexample",
            "ann%2540mail.example",
            "%61nn%EF%BC%A0mail.example",
            "ann%u0040mail.example",
            "ann&#64;mail&#x2e;example",
            "ann&#0064mail&period;example",
            "ann&commat;mail.example",
            "ann&amp;#64;mail.example",
            "ann&shy;&#64;mail.example",
            r"ann\u0040mail.example",
            r"ann\\u0040mail.example",
            r"ann\x40mail\.example",
            r"ann\u{40}mail.example",
            r"\ud835\udc1ann@mail.example",
            "ann=40mail.exam=\r\nple",
            "ann\u{ff05}40mail.example",
        ] {
            let spelled = spelled(text);
            let is_found = |view: &String| {
                view == "ann@mail.example" || view.replace('\u{e1}', "a") == "ann@mail.example"
            };
            assert!(spelled.iter().any(is_found), "{text:?}: {spelled:?}");
        }
        for (text, want) in [
            ("\u{664}\u{669} \u{6f3}\u{966}", "49 30"),
            ("\u{1d7d8}\u{1d7ff}\u{2460}\u{b2}", "0912"),
            ("52\u{66b}52\u{a0}\u{2212}1\u{2011}2", "52.52 -1-2"),
        ] {
            assert_eq!(spelled(text), [want], "{text:?}");
        }
    }

    #[test]
    fn plain_text_has_no_other_spelling() {
        for text in
            ["", "ann@mail.example", "100 % of a & b = c \\ d\r\n\t", "J\u{fc}rgen \u{3b1}\u{4e2d}"]
        {
            assert!(spelled(text).is_empty(), "{text:?}: {:?}", spelled(text));
        }
    }

    #[test]
    fn a_match_leads_back_to_the_whole_spelling() {
        let text = "\u{fc} to \u{ad}a\u{301}&#110;n%2540m\u{ad}ail\u{ad}, \u{664}";
        let source = |found: &str| {
            let all = views(text);
            let view = all.iter().find(|view| view.text.contains(found)).unwrap();
            let at = view.text.find(found).unwrap();
            text[view.source(&(at..at + found.len()))].to_owned()
        };
        assert_eq!(source("\u{e1}nn@mail"), "a\u{301}&#110;n%2540m\u{ad}ail");
        assert_eq!(source(", 4"), ", \u{664}");
        assert_eq!(source("\u{fc} to"), "\u{fc} to");
    }
}
