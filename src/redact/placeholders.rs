//! Placeholders: one for each value of a request, and the job that has them in place of the values.

use std::collections::{BTreeMap, BTreeSet};

use super::RedactionRule;
use super::find::{Collected, Found, Values};
use super::pieces::{Field, Kind, Pieces};
use crate::request::job::Role;

/// The placeholders of one request.
pub(super) struct Placeholders {
    /// A part of each placeholder, so that no text of the request is taken for a placeholder.
    salt: String,
    /// The placeholders by rule and value.
    values: BTreeMap<(String, String), String>,
    /// The number of values of each rule.
    counts: BTreeMap<String, usize>,
}

impl Placeholders {
    pub(super) fn of(collected: &Collected) -> Placeholders {
        let texts = collected.documents.iter().flat_map(|document| salts(&document.text));
        let mut taken: BTreeSet<u32> = texts.collect();
        // a name gets its placeholder without the brackets
        for (n, piece) in collected.pieces.iter().enumerate() {
            if piece.kind == Kind::Name {
                taken.extend(salts(&format!("[{}]", collected.text(n))));
            }
        }
        let free = (0..u32::MAX).find(|n| !taken.contains(n)).unwrap_or_default();
        let salt = if free == 0 { "_".to_owned() } else { format!("_{free}_") };
        Placeholders { salt, values: BTreeMap::new(), counts: BTreeMap::new() }
    }

    fn of_value(&mut self, name: &str, value: &str) -> String {
        let key = (name.to_owned(), value.to_owned());
        if let Some(placeholder) = self.values.get(&key) {
            return placeholder.clone();
        }
        let count = self.counts.entry(name.to_owned()).or_default();
        *count += 1;
        let placeholder = format!("[{name}{}{count}]", self.salt);
        self.values.insert(key, placeholder.clone());
        placeholder
    }

    /// The values by placeholder.
    pub(super) fn back(self) -> BTreeMap<String, String> {
        self.values.into_iter().map(|((_, value), placeholder)| (placeholder, value)).collect()
    }
}

/// The salts of texts that have the form of a placeholder: 2 in `[EMAIL_2_1]`, 0 in `[EMAIL_1]`.
fn salts(text: &str) -> impl Iterator<Item = u32> {
    text.split('[').skip(1).filter_map(|rest| {
        let (_, rest) = rest
            .split_once('_')
            .filter(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric()))?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let is_salt = rest[digits..].starts_with('_');
        Some(if is_salt { rest[..digits].parse().unwrap_or(0) } else { 0 })
    })
}

/// Puts placeholders in the place of the values.
pub(super) struct Replacer<'v> {
    pub(super) rules: &'v [RedactionRule],
    pub(super) values: &'v Values,
    /// The number of the next piece.
    pub(super) next: usize,
    pub(super) placeholders: Placeholders,
}

impl Replacer<'_> {
    fn placeholder(&mut self, rule: usize, value: &str) -> String {
        self.placeholders.of_value(&self.rules[rule].name, value)
    }
}

impl Pieces for Replacer<'_> {
    fn begin(&mut self, _: Field, _: Option<Role>) {}

    fn between(&mut self, _: &str) {}

    fn piece(&mut self, text: &str, kind: Kind) -> String {
        let values = self.values.get(&self.next);
        self.next += 1;
        let Some([first, ..]) = values.map(Vec::as_slice) else {
            return text.to_owned();
        };
        match kind {
            Kind::Text | Kind::Fixed(_) => {}
            Kind::Number => return self.placeholder(first.rule, text),
            Kind::Name => {
                let placeholder = self.placeholder(first.rule, text);
                return placeholder.trim_matches(['[', ']']).to_owned();
            }
        }
        let mut changed = String::with_capacity(text.len());
        let mut kept = 0;
        for Found { at, rule } in values.into_iter().flatten() {
            changed.push_str(&text[kept..at.start]);
            changed.push_str(&self.placeholder(*rule, &text[at.clone()]));
            kept = at.end;
        }
        changed.push_str(&text[kept..]);
        changed
    }
}
