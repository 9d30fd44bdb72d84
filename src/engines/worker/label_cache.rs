//! Cache of what an engine has learned of sets of labels, with least-recently-used eviction.

use std::sync::Arc;

use crate::limits::LABEL_SETS_MAX;
use crate::request::labels::Labels;

/// Up to [`LABEL_SETS_MAX`] sets, the most recently used at the end.
#[derive(Debug)]
pub(crate) struct LabelCache<L>(Vec<(Arc<Labels>, L)>);

impl<L> Default for LabelCache<L> {
    fn default() -> Self {
        LabelCache(Vec::new())
    }
}

impl<L> LabelCache<L> {
    /// Takes out the entry of the set with these examples. The margin is not compared: it is applied by
    /// the scheduler.
    pub(crate) fn take(&mut self, labels: &Labels) -> Option<L> {
        let at = self.0.iter().position(|(known, _)| known.examples == labels.examples)?;
        Some(self.0.remove(at).1)
    }

    /// Adds an entry as the most recently used; evicts the least recently used one if the cache is
    /// full.
    pub(crate) fn put(&mut self, labels: &Arc<Labels>, learned: L) {
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
    fn the_least_recently_used_set_is_evicted() {
        let labels = |n: usize| {
            let examples = BTreeMap::from([(n.to_string(), Vec::new())]);
            Arc::new(Labels { examples, margin: 0.0 })
        };
        let mut cache = LabelCache::default();
        for n in 0..LABEL_SETS_MAX {
            cache.put(&labels(n), n);
        }
        assert_eq!(cache.take(&labels(0)), Some(0));
        cache.put(&labels(0), 0);
        cache.put(&labels(99), 99);
        assert_eq!(cache.take(&labels(1)), None);
        let other_margin = Labels { margin: 0.9, ..labels(0).as_ref().clone() };
        assert_eq!(cache.take(&other_margin), Some(0));
    }
}
