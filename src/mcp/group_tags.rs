//! Tags of cache groups: what a model server is told instead of their names.

use std::hash::{BuildHasher, RandomState};

use sha2::{Digest, Sha256};

/// Makes the tags of one connection.
pub(super) enum GroupTags {
    /// Tags that say nothing to the server or to another connection.
    Drawn(RandomState),
    /// Tags that are the same after a restart, for an engine of this program, which keeps prefixes on disk.
    Lasting,
}

impl GroupTags {
    /// The tag of a group, 16 hexadecimal digits.
    pub(super) fn tag(&self, group: &str) -> String {
        match self {
            GroupTags::Drawn(state) => format!("{:016x}", state.hash_one(group)),
            GroupTags::Lasting => {
                let mut digest = format!("{:x}", Sha256::digest(group));
                digest.truncate(16);
                digest
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lasting_tags_are_those_of_another_connection() {
        let drawn = || GroupTags::Drawn(RandomState::new());
        let one = drawn();
        assert_eq!(one.tag("app"), one.tag("app"));
        assert_ne!(one.tag("app"), one.tag("other"));
        assert_ne!(one.tag("app"), drawn().tag("app"));
        let tag = GroupTags::Lasting.tag("app");
        assert_eq!((tag.len(), &tag), (16, &GroupTags::Lasting.tag("app")));
        assert_ne!(tag, GroupTags::Lasting.tag("other"));
    }
}
