//! Incremental detokenization: no character is split, and stop strings are removed.

/// Collects the bytes of tokens and returns text that is final.
#[derive(Debug, Default)]
pub struct TextOut {
    /// The start of an incomplete character, at most 3 bytes.
    partial: Vec<u8>,
    /// Text that may be the start of a stop string.
    held: String,
    stops: Vec<String>,
    stopped: bool,
}

impl TextOut {
    /// Text that ends before the first occurrence of a stop string.
    pub fn new(stops: Vec<String>) -> TextOut {
        TextOut { stops, ..TextOut::default() }
    }

    /// Whether a stop string occurred.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Adds the bytes of one token; returns the text that became final.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.partial.extend_from_slice(bytes);
        self.take_characters();
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            self.stopped = true;
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns the rest at the end of the answer. The beginning of a character is left out if the answer was cut
    /// off, and else becomes U+FFFD.
    pub fn finish(&mut self, is_cut_off: bool) -> String {
        if self.stopped {
            return String::new();
        }
        let partial = std::mem::take(&mut self.partial);
        if !is_cut_off {
            self.held.push_str(&String::from_utf8_lossy(&partial));
        }
        std::mem::take(&mut self.held)
    }

    /// Moves complete characters from `partial` to `held`; invalid bytes become U+FFFD.
    fn take_characters(&mut self) {
        let mut bytes = std::mem::take(&mut self.partial);
        // bounded: each round removes at least one byte or returns
        loop {
            match std::str::from_utf8(&bytes) {
                Ok(text) => {
                    self.held.push_str(text);
                    return;
                }
                Err(e) => {
                    let (good, rest) = bytes.split_at(e.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(good));
                    let Some(bad) = e.error_len() else {
                        self.partial = rest.to_vec();
                        return;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    bytes = rest[bad..].to_vec();
                }
            }
        }
    }
}

/// Length of the longest suffix of `text` that is a proper prefix of `stop`, bytes.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .filter(|&n| text.is_char_boundary(text.len() - n))
        .find(|&n| stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stops: &[&str], tokens: &[&[u8]], shown: &[&str], stopped: bool) {
        let mut out = TextOut::new(stops.iter().map(|&s| s.to_owned()).collect());
        let mut pieces: Vec<String> = tokens.iter().map(|token| out.push(token)).collect();
        pieces.push(out.finish(false));
        assert_eq!(pieces, shown, "{stops:?} {tokens:?}");
        assert_eq!(out.is_stopped(), stopped, "{stops:?} {tokens:?}");
    }

    #[test]
    fn characters_are_never_split() {
        check(&[], &[b"a", "é".as_bytes()], &["a", "é", ""], false);
        check(&[], &[&[0xC3], &[0xA9]], &["", "é", ""], false);
        check(&[], &[&[0xF0, 0x9F], &[0x94], &[0xA5, b'!']], &["", "", "🔥!", ""], false);
        check(&[], &[&[0xF0, 0x9F, 0x94]], &["", "\u{FFFD}"], false);
        check(&[], &[&[0xFF, b'a', 0xC3]], &["\u{FFFD}a", "\u{FFFD}"], false);
        check(&[], &[&[0xC3, b'a']], &["\u{FFFD}a", ""], false);
    }

    #[test]
    fn an_answer_that_is_cut_off_ends_with_a_whole_character() {
        let mut out = TextOut::default();
        assert_eq!(out.push(&[b'a', 0xF0, 0x9F, 0x94]), "a");
        assert_eq!(out.finish(true), "");
        // what may be the beginning of a stop string is text
        let mut out = TextOut::new(vec!["END".to_owned()]);
        assert_eq!(out.push(b"xEN"), "x");
        assert_eq!(out.finish(true), "EN");
    }

    #[test]
    fn stop_strings_are_removed() {
        check(&["\n"], &[b"one", b"\ntwo"], &["one", "", ""], true);
        check(&["END"], &[b"a E", b"N", b"D b"], &["a ", "", "", ""], true);
        check(&["END"], &[b"a E", b"N", b"A"], &["a ", "", "ENA", ""], false);
        check(&["END"], &[b"a EN"], &["a ", "EN"], false);
        check(&["aab"], &[b"aaa", b"ab!"], &["a", "a", ""], true);
        check(&["xy", "y"], &[b"axy"], &["a", ""], true);
        check(&["é"], &[&[0xC3], &[0xA9], b"x"], &["", "", "", ""], true);
    }

    #[test]
    fn the_text_does_not_depend_on_the_split() {
        let text = "naïve 🔥 stop STOP after";
        for at in 0..text.len() {
            let mut out = TextOut::new(vec!["STOP".to_owned()]);
            let (one, two) = text.as_bytes().split_at(at);
            let shown = out.push(one) + &out.push(two) + &out.finish(false);
            assert_eq!(shown, "naïve 🔥 stop ", "split at {at}");
        }
    }
}
