//! What an engine has learned of some sets of labels; the one used longest ago is forgotten first.

use std::sync::Arc;

use crate::limits::LABEL_SETS_MAX;
use crate::request::labels::Labels;

/// The sets, the one used last at the end.
#[derive(Debug)]
pub(crate) struct Sets<L>(Vec<(Arc<Labels>, L)>);

impl<L> Default for Sets<L> {
    fn default() -> Self {
        Sets(Vec::new())
    }
}

impl<L> Sets<L> {
    /// Takes out what was learned of this set; its margin does not matter, it is the judge's.
    pub(crate) fn take(&mut self, labels: &Labels) -> Option<L> {
        let at = self.0.iter().position(|(known, _)| known.examples == labels.examples)?;
        Some(self.0.remove(at).1)
    }

    /// Puts it back.
    pub(crate) fn keep(&mut self, labels: &Arc<Labels>, learned: L) {
        if self.0.len() >= LABEL_SETS_MAX {
            self.0.remove(0);
        }
        self.0.push((Arc::clone(labels), learned));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_set_that_was_not_used_for_the_longest_time_goes_first() {
        let labels = |n: usize| {
            let examples = BTreeMap::from([(n.to_string(), Vec::new())]);
            Arc::new(Labels { examples, margin: 0.0 })
        };
        let mut sets = Sets::default();
        for n in 0..LABEL_SETS_MAX {
            sets.keep(&labels(n), n);
        }
        assert_eq!(sets.take(&labels(0)), Some(0));
        sets.keep(&labels(0), 0);
        sets.keep(&labels(99), 99);
        assert_eq!(sets.take(&labels(1)), None);
        let other_margin = Labels { margin: 0.9, ..labels(0).as_ref().clone() };
        assert_eq!(sets.take(&other_margin), Some(0));
    }
}
