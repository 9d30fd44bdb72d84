//! Tests of the ledger.

use super::*;
use crate::money::Span;
use crate::money::account::{Change, Correction};

fn usd(cents: u32) -> Usd {
    Usd::at_least(f64::from(cents) / 100.0)
}

fn day() -> Hour {
    Hour::at(86_400 * 20_000)
}

fn disk(folder: &Path) -> Disk {
    Disk::open(folder, day()).unwrap()
}

fn hold(disk: &mut Disk, call: u64, cents: u32) {
    disk.books.turn(day());
    let line = disk.books.hold(call, "app", usd(cents));
    disk.write([&line].into_iter(), true).unwrap();
}

fn spent(folder: &Path) -> Usd {
    disk(folder).books.spent(None, Span::Day)
}

#[test]
fn reservations_count_after_a_sudden_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = disk(folder.path());
    hold(&mut first, 1, 30);
    hold(&mut first, 2, 50);
    first.write([&LedgerEntry::Bill { call: 1, usd: usd(7) }].into_iter(), false).unwrap();
    drop(first);
    assert_eq!(spent(folder.path()), usd(57));
    // a late bill has no reservation any more
    let mut later = disk(folder.path());
    later.write([&LedgerEntry::Bill { call: 2, usd: usd(1) }].into_iter(), true).unwrap();
    drop(later);
    assert_eq!(spent(folder.path()), usd(57));
}

#[test]
fn a_file_may_be_cut_off_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = disk(folder.path());
    hold(&mut first, 1, 30);
    hold(&mut first, 2, 50);
    drop(first);
    let path = folder.path().join(NAME);
    let whole = fs::read(&path).unwrap();
    let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    for cut in ends[0] + 1..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let lines = ends.iter().filter(|end| **end < cut).count();
        assert_eq!(spent(folder.path()), usd([0, 0, 30, 80][lines]), "{cut}");
    }
}

#[test]
fn damaged_books_allow_nothing() {
    for text in ["x\n", "{}\n", "", "{\"bill\": {\"call\": 1, \"usd\": 1}}\n", "\u{0}\n"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        fs::write(&path, text).unwrap();
        assert_eq!(spent(folder.path()), Usd::MOST, "{text:?}");
        assert_eq!(fs::read_to_string(path.with_extension("damaged")).unwrap(), text);
        // and that is stored
        assert_eq!(spent(folder.path()), Usd::MOST, "{text:?}");
    }
}

fn correction(id: u64) -> Correction {
    let (app, reason) = ("app".to_owned(), "a wrong bill".to_owned());
    Correction { id, app, change: Change::Subtract(Usd::MOST), reason, at: day() }
}

fn left(folder: &Path) -> Usd {
    account(folder, day()).unwrap().unwrap().spent(Some("app"), Span::Month)
}

#[test]
fn a_correction_is_appended_and_nothing_is_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, path) = (folder.path(), folder.path().join(NAME));
    assert_eq!(account(folder, day()).unwrap(), None);
    hold(&mut disk(folder), 1, 500);
    let before = fs::read_to_string(&path).unwrap();
    assert_eq!(left(folder), usd(500));
    // an entry that was being written at a sudden end
    fs::write(&path, format!("{before}{{\"hold\": {{\"call\"")).unwrap();
    corrections::put(folder, &correction(7)).unwrap();
    // the call is still open: after a sudden end it has cost its hold
    drop(disk(folder));
    let before = fs::read_to_string(&path).unwrap();
    corrections::put(folder, &correction(8)).unwrap();
    fs::write(&path, format!("{before}{{\"hold\": {{\"call\"")).unwrap();
    assert_eq!(apply_corrections(folder).unwrap(), Applied::Now);
    let after = fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(&before) && after.contains("a wrong bill"), "{after}");
    assert_eq!(left(folder), Usd::NONE);
    assert!(!corrections::is_waiting(folder, &correction(8)));
    // the reasons are still there after a service has begun the file anew, twice
    for _ in 0..2 {
        drop(disk(folder));
    }
    let account = account(folder, day()).unwrap().unwrap();
    assert!(account.corrections().eq([&correction(7), &correction(8)]));
}

#[test]
fn a_running_service_keeps_the_ledger_and_one_that_starts_takes_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = disk(folder.path());
    hold(&mut running, 1, 500);
    corrections::put(folder.path(), &correction(8)).unwrap();
    assert_eq!(apply_corrections(folder.path()).unwrap(), Applied::ByService);
    assert!(corrections::is_waiting(folder.path(), &correction(8)));
    drop(running);
    assert_eq!(spent(folder.path()), Usd::NONE);
    assert!(!corrections::is_waiting(folder.path(), &correction(8)));
}

#[test]
fn only_one_service_keeps_the_books() {
    let folder = tempfile::tempdir().unwrap();
    let first = disk(folder.path());
    let second = Disk::open(folder.path(), day()).err().unwrap();
    assert!(second.to_string().contains("another process"), "{second}");
    drop(first);
    disk(folder.path());
}

#[test]
fn a_long_file_is_made_anew_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = disk(folder.path());
    hold(&mut disk, 0, 1);
    let lines: Vec<LedgerEntry> =
        (1..=LEDGER_LINES_MAX as u64).map(|call| disk.books.hold(call, "app", usd(1))).collect();
    disk.write(lines.iter(), true).unwrap();
    let text = fs::read_to_string(folder.path().join(NAME)).unwrap();
    assert_eq!(text.lines().count(), 1);
    drop(disk);
    assert_eq!(spent(folder.path()), usd(10_001));
}

#[test]
fn without_a_place_nothing_is_sent_if_there_is_a_cap() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for is_binding in [true, false] {
        let (ledger, writer, books) = open(None, is_binding, day());
        let thread = std::thread::Builder::new().spawn(|| writer.run()).unwrap();
        let pending = ledger.hold(books.hold(1, "app", usd(1)));
        let result = runtime.block_on(pending.done());
        assert_eq!(result.is_err(), is_binding, "{result:?}");
        // a cap that the configuration gets or loses while the service runs
        ledger.set_binding(!is_binding);
        let result = runtime.block_on(ledger.hold(books.hold(2, "app", usd(1))).done());
        assert_eq!(result.is_ok(), is_binding, "{result:?}");
        drop(ledger);
        thread.join().unwrap();
    }
}
