//! Cache of what an engine has learned of sets of labels, with least-recently-used eviction.

use std::sync::Arc;

use crate::limits::engine::LABEL_SETS_MAX;
use crate::request::labels::Labels;

/// Up to [`LABEL_SETS_MAX`] sets, the most recently used at the end.
#[derive(Debug)]
pub(crate) struct LabelCache<L>(Vec<LabelEntry<L>>);

#[derive(Debug)]
struct LabelEntry<L> {
    labels: Arc<Labels>,
    /// The cache group whose own labels these are; none for those of the operator.
    owner: Option<Box<str>>,
    learned: L,
}

impl<L> Default for LabelCache<L> {
    fn default() -> Self {
        LabelCache(Vec::new())
    }
}

impl<L> LabelCache<L> {
    /// Takes out the entry of the set with these examples and this owner (see [`Job::label_owner`]). The
    /// margin is not compared: it is applied by the scheduler.
    ///
    /// [`Job::label_owner`]: crate::request::job::Job::label_owner
    pub(crate) fn take(&mut self, labels: &Labels, owner: Option<&str>) -> Option<L> {
        let at = self.0.iter().position(|known| {
            known.owner.as_deref() == owner && known.labels.examples == labels.examples
        })?;
        Some(self.0.remove(at).learned)
    }

    /// Adds an entry as the most recently used. If the cache is full the least recently used one is
    /// evicted, of those with an owner first: requests with labels of their own do not displace the
    /// operator's.
    pub(crate) fn put(&mut self, labels: &Arc<Labels>, owner: Option<&str>, learned: L) {
        if self.0.len() >= LABEL_SETS_MAX {
            let displaced = self.0.iter().position(|known| known.owner.is_some());
            self.0.remove(displaced.unwrap_or(0));
        }
        let (labels, owner) = (Arc::clone(labels), owner.map(Into::into));
        self.0.push(LabelEntry { labels, owner, learned });
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
            cache.put(&labels(n), None, n);
        }
        assert_eq!(cache.take(&labels(0), None), Some(0));
        cache.put(&labels(0), None, 0);
        cache.put(&labels(99), None, 99);
        assert_eq!(cache.take(&labels(1), None), None);
        let other_margin = Labels { margin: 0.9, ..labels(0).as_ref().clone() };
        assert_eq!(cache.take(&other_margin, None), Some(0));
    }

    #[test]
    fn labels_of_a_request_are_its_groups_own_and_evicted_first() {
        let labels = |n: usize| {
            let examples = BTreeMap::from([(n.to_string(), Vec::new())]);
            Arc::new(Labels { examples, margin: 0.0 })
        };
        let mut cache = LabelCache::default();
        cache.put(&labels(0), None, 0);
        for n in 1..2 * LABEL_SETS_MAX {
            cache.put(&labels(n), Some("alpha"), n);
        }
        let last = 2 * LABEL_SETS_MAX - 1;
        assert_eq!(cache.take(&labels(last), Some("beta")), None);
        assert_eq!(cache.take(&labels(last), None), None);
        assert_eq!(cache.take(&labels(last), Some("alpha")), Some(last));
        assert_eq!(cache.take(&labels(0), None), Some(0));
    }
}
