//! How fast this machine reads its memory. Writing one answer reads all weights for each token, so that it bounds
//! the rate.

use std::hint::black_box;
use std::io;
use std::thread::Builder;
use std::time::Duration;

use crate::clock::now;
use crate::limits::benchmark::{BANDWIDTH_BYTES_MAX, BANDWIDTH_ROUNDS};

/// Bytes a second that so many threads read together, of at most `bytes` and [`BANDWIDTH_BYTES_MAX`] of memory.
///
/// # Errors
/// If a thread can't be started.
pub fn bytes_per_s(threads: usize, bytes: u64) -> io::Result<f64> {
    let threads = threads.max(1);
    let bytes = usize::try_from(bytes.min(BANDWIDTH_BYTES_MAX)).unwrap_or(usize::MAX);
    let half = vec![1_u8; bytes / threads / 2];
    // of each thread, so that all is allocated and in use
    let all = vec![(half.clone(), half.clone()); threads];
    let mut best = Duration::MAX;
    for _ in 0..BANDWIDTH_ROUNDS {
        let start = now();
        std::thread::scope(|scope| {
            all.iter().try_for_each(|(one, other)| {
                // to compare two texts is to read both, by the fastest code of the C library
                let compare = move || black_box(black_box(one) == black_box(other));
                let thread = Builder::new().name("memory".to_owned());
                thread.spawn_scoped(scope, compare).map(drop)
            })
        })?;
        best = best.min(start.elapsed());
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 256 MiB")]
    let read = (2 * half.len() * threads) as f64;
    Ok(read / best.as_secs_f64().max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_a_memory() {
        let rate = bytes_per_s(2, 32 << 20).unwrap();
        // a tenth of the slowest board, and ten times the fastest server
        assert!((1e8..1e13).contains(&rate), "{rate}");
    }
}
