//! The writer that carries an answer.
//!
//! One answer has one bounded channel, whose reader is the client. Whoever routes a prompt lends its
//! writer to a backend ([`Out::lend`]) and learns afterwards whether anything was written; no task
//! copies pieces from one channel to the next.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::executor::block_on;
use futures::future::{Either, select, select_all};
use tokio::sync::mpsc;

use crate::limits::CHUNKS_WAITING_MAX;

/// A piece of an answer: whole characters, and its place in the answer from 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its place.
    pub n: u32,
    /// Its text, valid UTF-8. An empty one is a sign of life and no piece of the answer.
    pub text: String,
}

/// The reader has gone, or the writer was lent and its lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// Changes or keeps the pieces that pass through a lent writer.
pub trait Filter: Send {
    /// What goes on to the reader in place of this piece: some text, an empty text for a sign of
    /// life, or none if the filter keeps the piece.
    ///
    /// # Errors
    /// [`Gone`] if the backend should stop.
    fn piece(&mut self, text: String) -> Result<Option<String>, Gone>;
}

/// A filter that its lender reads when the lease has ended.
pub type SharedFilter = Arc<Mutex<dyn Filter>>;

/// The writing end of one answer's channel. It numbers the pieces, so that they can't be out of order.
pub struct Out {
    to: mpsc::Sender<Chunk>,
    written: u32,
    /// The place of the next piece that the reader gets.
    next: u32,
    /// From the outermost to the innermost.
    lent: Vec<Lent>,
}

/// What a writer knows of one of the leases under which it writes.
#[derive(Clone)]
struct Lent {
    /// Pieces sent under this lease, and [`ENDED`].
    sent: Arc<AtomicU32>,
    /// Closed when the lease ends.
    ended: mpsc::Sender<Infallible>,
    filter: Option<SharedFilter>,
}

/// The bit of [`Lent::sent`] that is set when the lease has ended. It shares a word with the count, so
/// that a piece is either counted by the lender or not sent.
const ENDED: u32 = 1 << 31;

/// The time in which a backend may write to another's channel. Nothing is sent after it is dropped.
pub struct Lease<'a> {
    of: &'a mut Out,
    sent: Arc<AtomicU32>,
    /// Open until the lease ends.
    _open: mpsc::Receiver<Infallible>,
}

/// Watches the reader of an answer beside its writer.
pub struct ReaderWatch {
    to: mpsc::Sender<Chunk>,
}

/// The bounded channel of one answer ([`CHUNKS_WAITING_MAX`] pieces): the writer and the client's end.
pub fn channel() -> (Out, mpsc::Receiver<Chunk>) {
    let (to, from) = mpsc::channel(CHUNKS_WAITING_MAX);
    (Out { to, written: 0, next: 0, lent: Vec::new() }, from)
}

impl Out {
    /// Lends the channel to another writer, whose pieces pass through `filter`. What the reader got
    /// of them is counted as written here when the lease ends.
    pub fn lend(&mut self, filter: Option<SharedFilter>) -> (Out, Lease<'_>) {
        let sent = Arc::new(AtomicU32::new(0));
        let (ended, open) = mpsc::channel(1);
        let mut lent = self.lent.clone();
        lent.push(Lent { sent: Arc::clone(&sent), ended, filter });
        let out = Out { to: self.to.clone(), written: 0, next: self.next, lent };
        (out, Lease { of: self, sent, _open: open })
    }

    /// Watches the reader while another thread writes.
    pub fn watch(&self) -> ReaderWatch {
        ReaderWatch { to: self.to.clone() }
    }

    /// Writes one piece; waits while the reader is behind.
    ///
    /// # Errors
    /// [`Gone`] if nobody reads it: the backend should stop.
    pub async fn write(&mut self, text: String) -> Result<(), Gone> {
        match self.pass(text)? {
            Some(chunk) => self.to.send(chunk).await.map_err(|_| Gone),
            None => Ok(()),
        }
    }

    /// [`Out::write`] from a thread outside the runtime. The end of the lease ends the wait too.
    ///
    /// # Errors
    /// [`Gone`] if nobody reads it: the backend should stop.
    pub fn write_blocking(&mut self, text: String) -> Result<(), Gone> {
        let Some(chunk) = self.pass(text)? else { return Ok(()) };
        match self.to.try_send(chunk) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Gone),
            Err(mpsc::error::TrySendError::Full(chunk)) => block_on(self.wait_and_send(chunk)),
        }
    }

    async fn wait_and_send(&self, chunk: Chunk) -> Result<(), Gone> {
        let send = self.to.send(chunk);
        if self.lent.is_empty() {
            return send.await.map_err(|_| Gone);
        }
        let ended = select_all(self.lent.iter().map(|lent| Box::pin(lent.ended.closed())));
        match select(pin!(send), ended).await {
            Either::Left((result, _)) => result.map_err(|_| Gone),
            Either::Right(_) => Err(Gone),
        }
    }

    /// Passes a piece through the filters, and counts and numbers it if the reader gets any of it.
    fn pass(&mut self, mut text: String) -> Result<Option<Chunk>, Gone> {
        if self.is_gone() {
            return Err(Gone);
        }
        self.written += 1;
        for filter in self.lent.iter().rev().filter_map(|lent| lent.filter.as_ref()) {
            match lock(filter).piece(text)? {
                Some(passed) => text = passed,
                None => return Ok(None),
            }
        }
        if text.is_empty() {
            self.alive();
            return Ok(None);
        }
        for lent in self.lent.iter().rev() {
            if lent.sent.fetch_add(1, Ordering::AcqRel) & ENDED != 0 {
                return Err(Gone);
            }
        }
        let n = self.next;
        self.next += 1;
        Ok(Some(Chunk { n, text }))
    }

    /// Sends a sign of life; never waits, and is dropped if the reader is behind.
    pub fn alive(&self) {
        if !self.is_gone() {
            let _ = self.to.try_send(Chunk { n: self.next, text: String::new() });
        }
    }

    /// Whether the reader is so far behind that the next write would wait.
    pub fn is_full(&self) -> bool {
        self.to.capacity() == 0 && !self.is_gone()
    }

    /// Whether the reader has gone or the lease has ended.
    pub fn is_gone(&self) -> bool {
        let has_ended = |lent: &Lent| lent.sent.load(Ordering::Acquire) & ENDED != 0;
        self.to.is_closed() || self.lent.iter().any(has_ended)
    }

    /// Pieces written so far, before any filter.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Ends when the reader has gone.
    pub async fn gone(&self) {
        self.to.closed().await;
    }
}

/// The filter, whether or not a thread panicked while it held it.
fn lock(filter: &SharedFilter) -> MutexGuard<'_, dyn Filter + 'static> {
    filter.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let sent = self.sent.fetch_or(ENDED, Ordering::AcqRel) & !ENDED;
        self.of.written += sent;
        self.of.next += sent;
    }
}

impl ReaderWatch {
    /// Sends a sign of life; never waits, and is dropped if the reader is behind.
    pub fn alive(&self) {
        let _ = self.to.try_send(Chunk { n: 0, text: String::new() });
    }

    /// Ends when the reader has gone.
    pub async fn gone(&self) {
        self.to.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(n: u32, text: &str) -> Chunk {
        Chunk { n, text: text.to_owned() }
    }

    #[test]
    fn lent_pieces_are_counted() {
        let (mut out, mut chunks) = channel();
        let (mut lent, lease) = out.lend(None);
        lent.write_blocking("a".to_owned()).unwrap();
        lent.alive();
        lent.write_blocking("b".to_owned()).unwrap();
        drop(lease);
        assert_eq!((lent.written(), out.written()), (2, 2));
        out.write_blocking("c".to_owned()).unwrap();
        drop((lent, out));
        let all: Vec<Chunk> = std::iter::from_fn(|| chunks.blocking_recv()).collect();
        assert_eq!(all, [piece(0, "a"), piece(1, ""), piece(1, "b"), piece(2, "c")]);
    }

    #[test]
    fn nothing_is_sent_after_the_lease() {
        let (mut out, mut chunks) = channel();
        let (mut lent, lease) = out.lend(None);
        drop(lease);
        assert!(lent.is_gone());
        assert_eq!(lent.write_blocking("late".to_owned()), Err(Gone));
        lent.alive();
        assert_eq!(out.written(), 0);
        let (mut lent, lease) = out.lend(None);
        lent.write_blocking("in time".to_owned()).unwrap();
        drop(lease);
        assert_eq!(chunks.try_recv().unwrap(), piece(0, "in time"));
        assert!(chunks.try_recv().is_err());
    }

    /// A thread that waits for a slow reader is free once the lease has ended.
    #[test]
    fn the_end_of_a_lease_ends_the_wait() {
        let (mut out, chunks) = channel();
        let (mut lent, lease) = out.lend(None);
        for _ in 0..CHUNKS_WAITING_MAX {
            lent.write_blocking("x".to_owned()).unwrap();
        }
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || lent.write_blocking("too much".to_owned()));
            while lease.sent.load(Ordering::Acquire) as usize <= CHUNKS_WAITING_MAX {
                std::thread::yield_now();
            }
            drop(lease);
            assert_eq!(writer.join().unwrap(), Err(Gone));
        });
        drop(chunks);
        assert!(out.is_gone());
    }

    /// A lease inside a lease ends with either.
    #[test]
    fn leases_nest() {
        let (mut out, mut chunks) = channel();
        let (mut middle, outer) = out.lend(None);
        let (mut lent, inner) = middle.lend(None);
        lent.write_blocking("a".to_owned()).unwrap();
        drop(inner);
        assert_eq!(lent.write_blocking("b".to_owned()), Err(Gone));
        assert_eq!(middle.written(), 1);
        let (mut lent, inner) = middle.lend(None);
        drop(outer);
        assert_eq!(lent.write_blocking("c".to_owned()), Err(Gone));
        drop(inner);
        assert_eq!(out.written(), 1);
        assert_eq!(chunks.try_recv().unwrap(), piece(0, "a"));
        assert!(chunks.try_recv().is_err());
    }

    struct Upper;

    impl Filter for Upper {
        fn piece(&mut self, text: String) -> Result<Option<String>, Gone> {
            match text.as_str() {
                "keep" => Ok(None),
                "stop" => Err(Gone),
                _ => Ok(Some(text.to_uppercase())),
            }
        }
    }

    #[test]
    fn filters_change_keep_and_stop() {
        let (mut out, mut chunks) = channel();
        let (mut lent, lease) = out.lend(Some(Arc::new(Mutex::new(Upper))));
        for text in ["a", "keep", "b"] {
            lent.write_blocking(text.to_owned()).unwrap();
        }
        assert_eq!(lent.write_blocking("stop".to_owned()), Err(Gone));
        drop(lease);
        // the reader's pieces count, and not those that the filter kept
        assert_eq!(out.written(), 2);
        assert_eq!(chunks.try_recv().unwrap(), piece(0, "A"));
        assert_eq!(chunks.try_recv().unwrap(), piece(1, "B"));
        assert!(chunks.try_recv().is_err());
    }
}
