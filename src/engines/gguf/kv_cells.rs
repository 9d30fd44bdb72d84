//! Which cells of the KV cache are taken: what sequences share takes its cells once.

/// Counts, for each cell, the sequences that have it.
#[derive(Debug, Default)]
pub(super) struct KvCells {
    uses: Vec<u32>,
    free: Vec<usize>,
}

impl KvCells {
    /// Takes a cell.
    pub(super) fn take(&mut self) -> usize {
        if let Some(cell) = self.free.pop() {
            self.uses[cell] = 1;
            return cell;
        }
        self.uses.push(1);
        self.uses.len() - 1
    }

    /// Lets one more sequence have these cells.
    pub(super) fn share(&mut self, cells: &[usize]) {
        for cell in cells {
            self.uses[*cell] += 1;
        }
    }

    /// Takes these cells from one of their sequences.
    pub(super) fn give_back(&mut self, cells: impl IntoIterator<Item = usize>) {
        for cell in cells {
            self.uses[cell] -= 1;
            if self.uses[cell] == 0 {
                self.free.push(cell);
            }
        }
    }

    /// Cells that some sequence has.
    pub(super) fn used(&self) -> usize {
        self.uses.len() - self.free.len()
    }

    /// Cells that at least one of these sequences has.
    pub(super) fn used_by<'c>(&self, sequences: impl Iterator<Item = &'c [usize]>) -> usize {
        let mut seen = vec![false; self.uses.len()];
        let new = |cell: &&usize| !std::mem::replace(&mut seen[**cell], true);
        sequences.flatten().filter(new).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_cell_counts_once_and_is_free_after_its_last_sequence() {
        let mut cells = KvCells::default();
        let one: Vec<usize> = (0..3).map(|_| cells.take()).collect();
        cells.share(&one[..2]);
        let other = vec![one[0], one[1], cells.take()];
        assert_eq!(cells.used(), 4);
        assert_eq!(cells.used_by([one.as_slice(), &other].into_iter()), 4);
        assert_eq!(cells.used_by([other.as_slice()].into_iter()), 3);
        cells.give_back(one);
        assert_eq!(cells.used(), 3);
        cells.give_back(other);
        assert_eq!(cells.used(), 0);
        assert!(cells.take() < 4);
    }
}
