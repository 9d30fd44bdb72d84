//! Feasibility: when each job of one engine ends, and which to offload so that the others meet
//! their deadlines.
//!
//! The *service order* is every job of one engine in the order in which it serves them. A *group* is
//! a run of it that is served by earliest deadline: jobs of one priority whose applications are
//! within their share, or above it. Jobs to offload are found for each group by itself, with all
//! that goes before it as given, by the method of Moore and Hodgson (J. M. Moore, "An n job, one
//! machine sequencing algorithm for minimizing the number of late jobs", Management Science 15,
//! 1968): where a job would be late, the longest so far is offloaded. For a job that
//! can't be offloaded and would be late others are, also of groups before its own, if that is
//! enough.

use std::cmp::Ordering;

use heapless::Vec as Bounded;
use heapless::binary_heap::{BinaryHeap, Max};

use crate::decision::spread::{Level, Spread};
use crate::limits::{RUNNING_JOBS_MAX, WAITING_JOBS_MAX};

/// Most jobs of one service order.
pub(super) const LINE_MAX: usize = WAITING_JOBS_MAX + RUNNING_JOBS_MAX;

/// Tolerance after the offload deadline, in milliseconds: the scheduler may be woken a little late.
const DEADLINE_TOLERANCE_MS: f64 = 250.0;
/// One job in service order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OrderedJob {
    /// From its start to its end, in milliseconds.
    pub(super) own: Spread,
    /// By how much it delays each job behind it, in milliseconds: less than its own time if the engine
    /// computes several at once.
    pub(super) delay: Spread,
    /// Until its deadline, in milliseconds.
    pub(super) left: f64,
    /// Which group it belongs to.
    pub(super) group: u8,
    /// Time until its offload deadline: the last moment at which a remote backend still answers in
    /// time, in milliseconds; none if it can't be offloaded.
    pub(super) offload_deadline: Option<f64>,
}

/// The jobs of one engine in the order of service.
pub(super) type ServiceOrder = Bounded<OrderedJob, LINE_MAX>;

/// A job to offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offload {
    /// Its index in service order.
    pub(super) item: usize,
    /// The index of the job that would be late because of it; it may be its own.
    pub(super) late: usize,
}

/// Whether every job of a service order is in time: for each its own time, its delay of those behind it, and the
/// time until its deadline, in milliseconds.
pub(super) fn all_in_time(mut order: impl Iterator<Item = (f64, f64, f64)>) -> bool {
    let mut before = 0.0;
    order.all(|(own, delay, left)| {
        let end = before + own;
        before += delay;
        end <= left
    })
}

/// Whether every job is in time at this level.
pub(super) fn holds(line: &[OrderedJob], level: Level) -> bool {
    all_in_time(line.iter().map(|item| (item.own.at(level), item.delay.at(level), item.left)))
}

/// The jobs to offload at this level, in the order in which they were found. Jobs that can't be
/// offloaded stay even if they are late.
pub(super) fn to_offload(
    line: &[OrderedJob],
    level: Level,
    gone: &[usize],
) -> Bounded<Offload, LINE_MAX> {
    let mut out = Bounded::new();
    if gone.is_empty() && holds(line, level) {
        return out;
    }
    let mut before = 0.0;
    let mut group = None;
    let mut longest = Candidates::new();
    let mut earlier = Candidates::new();
    for (at, item) in line.iter().enumerate() {
        if gone.contains(&at) {
            continue;
        }
        if group != Some(item.group) {
            group = Some(item.group);
            for candidate in &std::mem::take(&mut longest) {
                let _ = earlier.push(*candidate);
            }
        }
        let (own, delay) = (item.own.at(level), item.delay.at(level));
        if item.offload_deadline.is_some() {
            let _ = longest.push(Candidate { delay, item: at });
        }
        let mut late = before + own - item.left;
        before += delay;
        if late <= 0.0 {
            continue;
        }
        if item.offload_deadline.is_some() {
            if let Some(chosen) = longest.pop() {
                before -= chosen.delay;
                let _ = out.push(Offload { item: chosen.item, late: at });
            }
            continue;
        }
        let could: f64 = longest.iter().chain(&earlier).map(|candidate| candidate.delay).sum();
        if own > item.left || could < late {
            continue;
        }
        // bounded: each turn takes one candidate out
        while late > 0.0
            && let Some(chosen) = longest.pop().or_else(|| earlier.pop())
        {
            before -= chosen.delay;
            late -= chosen.delay;
            let _ = out.push(Offload { item: chosen.item, late: at });
        }
    }
    out
}

/// The jobs to offload, each with the quantile by which that was found, and the milliseconds after
/// which to decide again, if any.
pub(super) fn find_offloads(
    line: &[OrderedJob],
) -> (Bounded<(Offload, Level), LINE_MAX>, Option<f64>) {
    let mut found = Bounded::new();

    // 1. the certificate
    if holds(line, Level::Worst) {
        return (found, None);
    }
    let mut offloaded: Bounded<usize, LINE_MAX> = Bounded::new();

    // 2. hopeless
    for candidate in to_offload(line, Level::Hopeful, &[]) {
        let _ = offloaded.push(candidate.item);
        let _ = found.push((candidate, Level::Hopeful));
    }

    let last = |item: usize| line[item].offload_deadline;
    let wait = |candidate: &Offload| {
        let late = last(candidate.late).unwrap_or(f64::INFINITY);
        last(candidate.item).unwrap_or(f64::INFINITY).min(late)
    };

    // 3. no better choice
    for candidate in to_offload(line, Level::Likely, &offloaded) {
        let is_fixed = last(candidate.late).is_none();
        if is_fixed || wait(&candidate) <= -DEADLINE_TOLERANCE_MS {
            let _ = offloaded.push(candidate.item);
            let _ = found.push((candidate, Level::Likely));
        }
    }

    // 4. the offload deadline
    let mut check_ms = None;
    for candidate in to_offload(line, Level::Careful, &offloaded) {
        let wait = wait(&candidate);
        if wait <= -DEADLINE_TOLERANCE_MS {
            continue;
        }
        // a millisecond is not worth another event
        if wait <= 1.0 {
            let _ = found.push((candidate, Level::Careful));
        } else {
            check_ms = Some(check_ms.map_or(wait, |other: f64| other.min(wait)));
        }
    }
    (found, check_ms)
}

type Candidates = BinaryHeap<Candidate, Max, LINE_MAX>;

/// Delay of a job by those before it, without those that are offloaded.
pub(super) fn ahead(line: &[OrderedJob], item: usize, gone: &[usize]) -> Spread {
    let before = line.iter().enumerate().take(item).filter(|(at, _)| !gone.contains(at));
    before.fold(Spread::default(), |sum, (_, item)| sum.with(&item.delay, |a, b| a + b))
}

/// Ordered by its delay of others, among equals by index.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    delay: f64,
    item: usize,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.delay.total_cmp(&other.delay).then(self.item.cmp(&other.item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(own: u32, left: u32) -> OrderedJob {
        OrderedJob {
            own: Spread::all(f64::from(own)),
            delay: Spread::all(f64::from(own)),
            left: f64::from(left),
            group: 0,
            offload_deadline: Some(0.0),
        }
    }

    fn late(line: &[OrderedJob], gone: &[usize]) -> usize {
        let mut before = 0.0;
        let stays = line.iter().enumerate().filter(|(at, _)| !gone.contains(at));
        stays
            .filter(|(_, item)| {
                before += item.own.p50;
                before > item.left
            })
            .count()
    }

    /// The fewest that must leave so that all others are in time, by trying every choice.
    fn fewest(line: &[OrderedJob]) -> u32 {
        let all = 0_u32..1 << line.len();
        let works = all.filter(|set| {
            let gone: Vec<usize> = (0..line.len()).filter(|at| set >> at & 1 == 1).collect();
            late(line, &gone) == 0
        });
        works.map(u32::count_ones).min().unwrap()
    }

    #[test]
    fn no_choice_offloads_fewer() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..3_000 {
            let mut line: Vec<OrderedJob> = (0..random.usize(0..=10))
                .map(|_| item(random.u32(1..20), random.u32(1..80)))
                .collect();
            line.sort_by(|a, b| a.left.total_cmp(&b.left));
            let to_offload = to_offload(&line, Level::Likely, &[]);
            let gone: Vec<usize> = to_offload.iter().map(|v| v.item).collect();
            assert_eq!(late(&line, &gone), 0, "round {round}: {line:?} without {gone:?}");
            assert_eq!(gone.len(), fewest(&line) as usize, "round {round}: {line:?}");
            assert_eq!(holds(&line, Level::Likely), gone.is_empty());
        }
    }

    #[test]
    fn fixed_jobs_stay_and_later_groups_push_out_none() {
        let fixed = |own, left| OrderedJob { offload_deadline: None, ..item(own, left) };
        let found = |line: &[OrderedJob]| -> Vec<(usize, usize)> {
            let to_offload = to_offload(line, Level::Likely, &[]);
            to_offload.iter().map(|v| (v.item, v.late)).collect()
        };
        assert_eq!(found(&[fixed(9, 10), item(5, 12)]), [(1, 1)]);
        assert_eq!(found(&[item(5, 10), fixed(9, 12)]), [(0, 1)]);
        assert_eq!(found(&[fixed(5, 10), fixed(9, 12)]), []);
        // it is helped by whoever can, if that is enough
        let behind = |own, left| OrderedJob { group: 1, ..fixed(own, left) };
        assert_eq!(found(&[item(2, 10), item(5, 10), behind(4, 8)]), [(1, 2)]);
        assert_eq!(found(&[item(2, 10), item(5, 10), behind(4, 5)]), [(1, 2), (0, 2)]);
        assert_eq!(found(&[fixed(5, 10), item(2, 10), behind(4, 6)]), [], "in vain");
        assert_eq!(found(&[item(5, 10), behind(9, 8)]), [], "it is lost by itself");
        // a job of a later group does not push out one of an earlier group
        let later = OrderedJob { group: 1, ..item(2, 10) };
        assert_eq!(found(&[item(9, 10), later]), [(1, 1)]);
    }

    #[test]
    fn parallel_service_shortens_the_backlog() {
        let of_two = |left| OrderedJob { delay: Spread::all(5.0), ..item(10, left) };
        assert!(holds(&[of_two(10), of_two(15), of_two(20)], Level::Worst));
        assert!(!holds(&[item(10, 10), item(10, 15), item(10, 20)], Level::Worst));
        assert!(!holds(&[of_two(10), of_two(14)], Level::Worst));
        // a job that delays others by less than its own time is offloaded for no more than that
        let fixed = OrderedJob { offload_deadline: None, ..item(9, 12) };
        let found = |line: &[OrderedJob]| -> Vec<usize> {
            to_offload(line, Level::Likely, &[]).iter().map(|v| v.item).collect()
        };
        assert_eq!(found(&[of_two(10), fixed.clone()]), [0]);
        let much_later = OrderedJob { left: 14.0, ..fixed };
        assert_eq!(found(&[of_two(10), much_later]), [0; 0]);
    }

    #[test]
    fn the_backlog_leaves_out_offloaded_jobs() {
        let line = [item(3, 99), item(4, 99), item(5, 99)];
        assert_eq!(ahead(&line, 2, &[]), Spread::all(7.0));
        assert_eq!(ahead(&line, 2, &[0]), Spread::all(4.0));
    }
}
