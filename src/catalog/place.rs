//! The places of the values of a text of JSON: the line and column of each path.

use std::borrow::Cow;

use super::mistake::{FILE, Mistake, Place};

/// The places of all values of a text, in the order of the text.
pub(super) struct ValuePlaces<'t> {
    text: &'t str,
    /// The offset of the first byte of each line.
    lines: Vec<usize>,
    nodes: Vec<Node>,
}

/// One value.
pub(super) struct Node {
    /// The offset of the value, or of its key if it has one.
    start: usize,
    /// The offset of the value.
    value: usize,
    /// The index of the first node that is not within this value.
    next: usize,
}

impl<'t> ValuePlaces<'t> {
    pub(super) fn new(text: &'t str) -> ValuePlaces<'t> {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        ValuePlaces { text, lines, nodes: Vec::new() }
    }

    /// Adds a value with the offset of its key, or its own if it has none; [`ValuePlaces::end`] is called with
    /// the result.
    pub(super) fn begin(&mut self, start: usize, value: usize) -> usize {
        self.nodes.push(Node { start, value, next: 0 });
        self.nodes.len() - 1
    }

    /// The offset of the last value that has begun, or of its key.
    pub(super) fn last(&self) -> usize {
        self.nodes.last().map_or(0, |node| node.start)
    }

    /// Ends a value: the nodes since are within it.
    pub(super) fn end(&mut self, node: usize) {
        self.nodes[node].next = self.nodes.len();
    }

    /// The line of an offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    /// The text of a line before this offset.
    pub(super) fn line_before(&self, offset: usize) -> &'t str {
        self.text.get(self.lines[self.line(offset) - 1]..offset).unwrap_or_default()
    }

    /// The place of an offset, which is on the border of a character.
    pub(super) fn place(&self, offset: usize) -> Place {
        let column = self.line_before(offset).chars().count() + 1;
        Place { file: FILE.to_owned(), line: self.line(offset), column }
    }

    /// The place of serde's line and column, which counts bytes.
    pub(super) fn place_of(&self, line: usize, column: usize) -> Place {
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let mut offset = (start + column.saturating_sub(1)).min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        self.place(offset)
    }

    /// Gives each of these mistakes that has no place that of its path: of its key, of the item of an
    /// array, or if there is no such value, of the nearest one around it.
    pub(super) fn locate(&self, mistakes: &mut [Mistake]) {
        for mistake in mistakes.iter_mut().filter(|mistake| mistake.place.is_none()) {
            let offset = self.offset(&mistake.path);
            mistake.place = Some(self.place(offset));
        }
    }

    fn offset(&self, path: &str) -> usize {
        let mut rest = path;
        let mut at = 0;
        let Some(root) = self.nodes.first() else { return 0 };
        let mut start = root.start;
        // bounded: each turn goes one level down
        while let Some((child, left)) = self.child(at, rest) {
            (at, rest, start) = (child, left, self.nodes[child].start);
        }
        start
    }

    /// The child that the path begins with, and the rest of the path. A key may have dots: the longest
    /// one counts, and of equal ones the last.
    fn child<'p>(&self, of: usize, path: &'p str) -> Option<(usize, &'p str)> {
        if path.is_empty() {
            return None;
        }
        let is_object = self.text.as_bytes().get(self.nodes[of].value) == Some(&b'{');
        let name = path.strip_prefix('.').unwrap_or(path);
        let mut found: Option<(usize, &str)> = None;
        let (mut child, mut index) = (of + 1, 0);
        while child < self.nodes[of].next {
            let left = if is_object {
                key_at(self.text, self.nodes[child].start).and_then(|key| name.strip_prefix(&*key))
            } else {
                path.strip_prefix(&format!("[{index}]"))
            };
            let is_end = |left: &&str| left.is_empty() || left.starts_with(['.', '[']);
            if let Some(left) = left.filter(is_end)
                && found.is_none_or(|(_, shortest)| left.len() <= shortest.len())
            {
                found = Some((child, left));
            }
            (child, index) = (self.nodes[child].next, index + 1);
        }
        found
    }
}

/// The key that begins at this offset; none if it is not in double quotes or has a wrong escape.
pub(super) fn key_at(text: &str, start: usize) -> Option<Cow<'_, str>> {
    let inside = text.get(start..)?.strip_prefix('"')?;
    let mut is_escaped = false;
    let end = inside.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })?;
    let key = &inside[..end];
    if !key.contains('\\') {
        return Some(Cow::Borrowed(key));
    }
    serde_json::from_str(&text[start..start + end + 2]).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::super::mistake::Mistakes;
    use super::super::strict::scan;
    use super::*;

    #[test]
    fn paths_are_found_in_the_text() {
        let text = "{\r\n  \"ä\": {\"b.c\": [1, {\"d\": 2}], \"b\": {\"c\": 3}, \"\": 4},\n\t\"\\u0065\": \"日🙂\", \"f\": 5, \"a[0]\": 6\n}";
        let places = scan(text, &mut Mistakes::default()).places;
        let check = |path: &str, line: usize, column: usize| {
            let mut found = [Mistake::new(path, "")];
            places.locate(&mut found);
            let place = found[0].place.as_ref().unwrap();
            assert_eq!((place.line, place.column), (line, column), "{path}");
        };
        check("ä", 2, 3);
        check("ä.b.c", 2, 9);
        check("ä.b.c[0]", 2, 17);
        check("ä.b.c[1].d", 2, 21);
        check("ä.b", 2, 31);
        // the longest key counts
        check("ä.b.cc", 2, 31);
        check("e", 3, 2);
        check("f", 3, 18);
        check("a[0]", 3, 26);
        // what is not there has the place of what is around it
        check("ä.x.y", 2, 3);
        check("f.g", 3, 18);
        check("ä.b.c[2]", 2, 9);
        check("mcpServers", 1, 1);
        check("mcp.json", 1, 1);
    }
}
