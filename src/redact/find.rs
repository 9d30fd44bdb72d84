//! Matches in the pieces of a job: within each document in every spelling, and across the ends of lines
//! and messages.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use super::fold;
use super::pieces::{Field, Kind, Pieces};
use super::{KnownPattern, Redactor};
use crate::limits::REDACT_JOINT_BYTES_MAX;
use crate::request::job::Role;

/// Stands between two joints: a line break ends what a pattern with `.` takes in, the character between
/// what one with `\s` does. It is ASCII, because `regex` is slow with word boundaries in other text.
const GAP: &str = "\n|\n";

/// Fewest bytes on each side of a joint, up to the next space: a value that has spaces is not longer.
const JOINT_BYTES: usize = 64;

/// How often texts are matched again beside the values that were found in them.
const BESIDE_ROUNDS_MAX: usize = 4;

/// Stands for each byte of a value that was found: no part of a built-in pattern, and the same in every spelling.
const COVER: u8 = b'|';

/// The pieces of a job in their order.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) documents: Vec<Document>,
    pub(super) pieces: Vec<Piece>,
}

/// Pieces that are matched together, with what separates them.
pub(super) struct Document {
    pub(super) text: String,
    pub(super) field: Field,
    role: Option<Role>,
    /// Its pieces.
    pieces: Range<usize>,
}

/// One piece.
pub(super) struct Piece {
    document: usize,
    /// Where it stands in its document.
    at: Range<usize>,
    pub(super) kind: Kind,
}

/// A value that is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it stands in its piece.
    pub(super) at: Range<usize>,
    /// The rule with the highest precedence that matches there.
    pub(super) rule: usize,
}

/// The values by piece, in their order, without overlaps.
pub(super) type Values = BTreeMap<usize, Vec<Found>>;

/// A match in a text.
struct Match {
    /// The part that is replaced.
    at: Range<usize>,
    /// All that the pattern takes in.
    whole: Range<usize>,
    rule: usize,
}

impl Pieces for Collected {
    fn begin(&mut self, field: Field, role: Option<Role>) {
        let next = self.pieces.len();
        self.documents.push(Document { text: String::new(), field, role, pieces: next..next });
    }

    /// The result stands for nothing: this traversal only reads.
    fn piece(&mut self, text: &str, kind: Kind) -> String {
        let document = self.documents.len().saturating_sub(1);
        if let Some(last) = self.documents.last_mut() {
            let start = last.text.len();
            last.text.push_str(text);
            self.pieces.push(Piece { document, at: start..last.text.len(), kind });
            last.pieces.end = self.pieces.len();
        }
        String::new()
    }

    fn between(&mut self, text: &str) {
        if let Some(last) = self.documents.last_mut() {
            last.text.push_str(text);
        }
    }
}

impl Collected {
    pub(super) fn text(&self, piece: usize) -> &str {
        let Piece { document, at, .. } = &self.pieces[piece];
        &self.documents[*document].text[at.clone()]
    }

    pub(super) fn field(&self, piece: usize) -> Field {
        self.documents[self.pieces[piece].document].field
    }
}

impl Redactor {
    /// Every value that the rules find in these pieces. What stands beside a value is matched as it is
    /// sent, beside a placeholder, also where the value was found across the ends of lines or messages.
    pub(super) fn find(&self, collected: &Collected) -> Values {
        let mut values = Values::new();
        let mut documents: Vec<usize> = (0..collected.documents.len()).collect();
        for _ in 0..=BESIDE_ROUNDS_MAX {
            for document in documents {
                self.find_within(collected, document, &mut values);
            }
            let within = values.clone();
            self.find_across(collected, &mut values);
            let grown = values.iter().filter(|(piece, found)| within.get(piece) != Some(found));
            documents = grown.map(|(piece, _)| collected.pieces[*piece].document).collect();
            documents.dedup();
            if documents.is_empty() {
                break;
            }
        }
        values
    }

    /// The values of one document beside those that are known.
    fn find_within(&self, collected: &Collected, document: usize, values: &mut Values) {
        let Document { text, pieces: range, .. } = &collected.documents[document];
        let pieces = &collected.pieces[range.clone()];
        let known = pieces.iter().zip(range.clone()).flat_map(|(piece, n)| {
            let found = values.get(&n).map_or(&[][..], Vec::as_slice);
            found.iter().map(|one| piece.at.start + one.at.start..piece.at.start + one.at.end)
        });
        for found in self.matches(text, known.collect(), None) {
            let first = pieces.partition_point(|piece| piece.at.end <= found.at.start);
            let touched = pieces[first..].iter().take_while(|p| p.at.start < found.at.end);
            for (n, piece) in touched.enumerate().filter(|(_, p)| !p.at.is_empty()) {
                let at = within(&piece.at, &found.at);
                let values = values.entry(range.start + first + n).or_default();
                values.push(Found { at, rule: found.rule });
            }
        }
        values.range_mut(range.clone()).for_each(|(_, values)| merge(values));
    }

    /// The values that no document has as a whole: those that are continued in the next line, in the
    /// next message, or in the next message of the same role.
    fn find_across(&self, collected: &Collected, values: &mut Values) {
        let role = |piece: &Piece| collected.documents[piece.document].role;
        let texts = collected.pieces.iter().enumerate();
        let texts = texts.filter(|(_, piece)| piece.kind == Kind::Text && role(piece).is_some());
        let all: Vec<usize> = texts.map(|(n, _)| n).collect();
        self.find_in_lines(collected, &all, values);
        for one in [Role::System, Role::User, Role::Assistant, Role::Tool] {
            let own = all.iter().copied().filter(|n| role(&collected.pieces[*n]) == Some(one));
            let own: Vec<usize> = own.collect();
            if own.len() > 1 && own.len() < all.len() {
                self.find_in_lines(collected, &own, values);
            }
        }
    }

    fn find_in_lines(&self, collected: &Collected, pieces: &[usize], values: &mut Values) {
        let lines = lines_of(collected, pieces, values);
        let is_known = self.rules.iter().all(|rule| rule.known.is_some());
        // a pair of coordinates may be parted between its numbers or within one of them
        for (separator, only) in [("", None), (" ", Some(KnownPattern::Coordinates))] {
            if lines.len() < 2
                || only.is_some_and(|known| !self.rules.iter().any(|r| r.known == Some(known)))
            {
                continue;
            }
            let joints = Joints::of(collected, &lines, separator, |end, beginning| {
                !is_known || may_cross(end, beginning)
            });
            for found in self.matches(&joints.text, Vec::new(), only) {
                if joints.touched(&found.whole).count() < 2 {
                    continue;
                }
                for part in joints.touched(&found.at) {
                    let at = within(&part.at, &found.at);
                    let at = part.offset + at.start..part.offset + at.end;
                    values.entry(part.piece).or_default().push(Found { at, rule: found.rule });
                }
            }
        }
        values.values_mut().for_each(merge);
    }

    /// The matches in each spelling of the text beside the values that are known; with `only`, those of
    /// one built-in pattern. A number that follows a value without a space is none of its own before it
    /// follows a placeholder.
    fn matches(
        &self,
        text: &str,
        mut known: Vec<Range<usize>>,
        only: Option<KnownPattern>,
    ) -> Vec<Match> {
        let mut found = Vec::new();
        for _ in 0..=BESIDE_ROUNDS_MAX {
            let Some(covered) = covered(text, &known) else { break };
            let mut more = self.matches_once(&covered, only);
            more.retain(|new| !known.iter().any(|value| overlap(value, &new.at)));
            if more.is_empty() {
                break;
            }
            known.extend(more.iter().map(|new| new.at.clone()));
            found.append(&mut more);
        }
        found
    }

    fn matches_once(&self, text: &str, only: Option<KnownPattern>) -> Vec<Match> {
        let mut found = Vec::new();
        self.match_view(text, only, &mut found, Range::clone);
        for view in fold::views(text) {
            self.match_view(&view.text, only, &mut found, |at| view.source(at));
        }
        found
    }

    fn match_view(
        &self,
        text: &str,
        only: Option<KnownPattern>,
        found: &mut Vec<Match>,
        source: impl Fn(&Range<usize>) -> Range<usize>,
    ) {
        let has_at = text.contains('@');
        let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
        for (rule, pattern) in self.rules.iter().enumerate() {
            let may_match = match pattern.known {
                Some(KnownPattern::Email) => has_at,
                Some(KnownPattern::Phone | KnownPattern::Coordinates) => has_digit,
                None => true,
            };
            if may_match && (only.is_none() || pattern.known == only) {
                let matches = pattern.find(text);
                found.extend(matches.map(|(at, whole)| Match {
                    at: source(&at),
                    whole: source(&whole),
                    rule,
                }));
            }
        }
    }
}

/// The text with a character of no pattern in place of each byte of the values; none where a value does
/// not end with a character.
fn covered<'a>(text: &'a str, values: &[Range<usize>]) -> Option<Cow<'a, str>> {
    if values.is_empty() {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.as_bytes().to_vec();
    for value in values {
        bytes.get_mut(value.clone())?.fill(COVER);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// A line of a piece.
struct Line {
    piece: usize,
    /// What of its beginning and of its end is not replaced already: `ok` before `ann@mail.example` is no
    /// part of an address.
    head: Range<usize>,
    tail: Range<usize>,
}

/// The lines of these pieces, without empty ones.
fn lines_of(collected: &Collected, pieces: &[usize], values: &Values) -> Vec<Line> {
    let mut lines = Vec::new();
    for &piece in pieces {
        let known = values.get(&piece).map_or(&[][..], Vec::as_slice);
        let mut offset = 0;
        for whole in collected.text(piece).split_inclusive(['\n', '\r']) {
            let line = whole.trim_start();
            let start = offset + whole.len() - line.len();
            let at = start..start + line.trim_end().len();
            offset += whole.len();
            let (mut head, mut tail) = (at.clone(), at.clone());
            let first = known.partition_point(|value| value.at.end <= at.start);
            let end = known.partition_point(|value| value.at.start < at.end);
            if let [first, ..] = &known[first..end.max(first)] {
                head.end = first.at.start.max(at.start);
            }
            if let [.., last] = &known[first..end.max(first)] {
                tail.start = last.at.end.min(at.end);
            }
            if !at.is_empty() {
                lines.push(Line { piece, head, tail });
            }
        }
    }
    lines
}

/// The end of each line with the beginning of the next.
struct Joints {
    text: String,
    parts: Vec<JointPart>,
}

/// A part of a line.
struct JointPart {
    /// Where it stands in the text.
    at: Range<usize>,
    piece: usize,
    /// Where it begins in its piece.
    offset: usize,
}

impl Joints {
    /// The joints of which `is_wanted` wants both sides.
    fn of(
        collected: &Collected,
        lines: &[Line],
        separator: &str,
        is_wanted: impl Fn(&str, &str) -> bool,
    ) -> Joints {
        let mut joints = Joints { text: String::new(), parts: Vec::new() };
        for pair in lines.windows(2) {
            let [first, next] = pair else { continue };
            if first.tail.is_empty() || next.head.is_empty() {
                continue;
            }
            let end = end_of(&collected.text(first.piece)[first.tail.clone()]);
            let beginning = beginning_of(&collected.text(next.piece)[next.head.clone()]);
            if !is_wanted(end, beginning) {
                continue;
            }
            joints.push(end, first.piece, first.tail.end - end.len());
            joints.text.push_str(separator);
            joints.push(beginning, next.piece, next.head.start);
            joints.text.push_str(GAP);
        }
        joints
    }

    fn push(&mut self, text: &str, piece: usize, offset: usize) {
        let start = self.text.len();
        self.text.push_str(text);
        self.parts.push(JointPart { at: start..self.text.len(), piece, offset });
    }

    /// The parts of which this range of the text has some.
    fn touched(&self, at: &Range<usize>) -> impl Iterator<Item = &JointPart> {
        let first = self.parts.partition_point(|part| part.at.end <= at.start);
        let end = at.end;
        self.parts[first..].iter().take_while(move |part| part.at.start < end)
    }
}

/// Whether a built-in pattern may match across the joint, in some spelling: an address has no spaces, and
/// the other values go on with a digit or a sign.
fn may_cross(end: &str, beginning: &str) -> bool {
    let is_telling = |c: char| !c.is_ascii() || matches!(c, '@' | '&' | '%' | '\\' | '=');
    let last = end.rsplit(char::is_whitespace).next().unwrap_or_default();
    let first = beginning.split(char::is_whitespace).next().unwrap_or_default();
    !first.starts_with(|c: char| c.is_ascii_alphabetic())
        || last.contains(is_telling)
        || first.contains(is_telling)
}

/// The words at the end of a line that a value may begin in, at most [`REDACT_JOINT_BYTES_MAX`] bytes.
fn end_of(line: &str) -> &str {
    let from = line.ceil_char_boundary(line.len().saturating_sub(REDACT_JOINT_BYTES_MAX));
    let near = line.floor_char_boundary(line.len().saturating_sub(JOINT_BYTES)).max(from);
    let word = line[from..near].rfind(char::is_whitespace);
    &line[word.map_or(from, |at| from + at)..]
}

/// The words at the beginning of a line that a value may end in, likewise.
fn beginning_of(line: &str) -> &str {
    let end = line.floor_char_boundary(REDACT_JOINT_BYTES_MAX);
    let near = line.ceil_char_boundary(JOINT_BYTES).min(end);
    let word = line[near..end].find(char::is_whitespace);
    &line[..word.map_or(end, |at| near + at)]
}

/// The part of `at` within `outer`, counted from its beginning.
fn within(outer: &Range<usize>, at: &Range<usize>) -> Range<usize> {
    let (start, end) = (at.start.max(outer.start), at.end.min(outer.end));
    start - outer.start..end - outer.start
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Puts the values into their order and makes one of those that overlap.
fn merge(found: &mut Vec<Found>) {
    found.sort_by_key(|value| value.at.start);
    found.dedup_by(|next, last| {
        let is_one = overlap(&next.at, &last.at);
        if is_one {
            last.at.end = last.at.end.max(next.at.end);
            last.rule = last.rule.min(next.rule);
        }
        is_one
    });
}
