//! Progress of an HTTP client: how long the service waits for one that sends or reads slowly.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::clock;
use crate::limits::{HTTP_RATE_MIN, HTTP_STALL_MAX};

/// The time that is left to wait for a client: at most [`HTTP_STALL_MAX`], less the time waited, and
/// more with each byte by [`HTTP_RATE_MIN`].
#[derive(Debug, Clone, Copy)]
pub(super) struct ProgressBudget(Duration);

impl Default for ProgressBudget {
    fn default() -> ProgressBudget {
        ProgressBudget(HTTP_STALL_MAX)
    }
}

impl ProgressBudget {
    /// The time that is left.
    pub(super) fn left(self) -> Duration {
        self.0
    }

    /// Notes that so many bytes came after a wait of that time.
    pub(super) fn progress(&mut self, bytes: usize, waited: Duration) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let rate = u32::try_from(HTTP_RATE_MIN).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) / rate * bytes;
        self.0 = (self.0.saturating_sub(waited) + earned).min(HTTP_STALL_MAX);
    }
}

/// A TCP stream whose writes fail if the client does not read fast enough.
pub(super) struct ProgressStream<'s> {
    stream: &'s mut TcpStream,
    budget: ProgressBudget,
    /// When the client stopped reading, and the end of the patience with it.
    blocked: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<'s> ProgressStream<'s> {
    pub(super) fn new(stream: &'s mut TcpStream) -> ProgressStream<'s> {
        ProgressStream { stream, budget: ProgressBudget::default(), blocked: None }
    }

    /// Notes the outcome of a write.
    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match (&written, &mut self.blocked) {
            (Poll::Ready(Ok(bytes)), Some((since, _))) => {
                self.budget.progress(*bytes, clock::now().saturating_duration_since(*since));
                self.blocked = None;
                written
            }
            (Poll::Ready(_), _) => written,
            (Poll::Pending, blocked) => {
                let left = self.budget.left();
                let wait = || (clock::now(), Box::pin(tokio::time::sleep(left)));
                let (_, end) = blocked.get_or_insert_with(wait);
                end.as_mut().poll(context).map(|()| {
                    let message = "the client does not read the response";
                    Err(io::Error::new(io::ErrorKind::TimedOut, message))
                })
            }
        }
    }
}

impl AsyncRead for ProgressStream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ProgressStream<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.stream).poll_write_vectored(context, parts);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_time_at_the_least_rate_only() {
        // so many bytes after each wait, and whether all waits are within the budget
        let check = |bytes: usize, seconds: u64, waits: u32, expected: bool| {
            let mut budget = ProgressBudget::default();
            let wait = Duration::from_secs(seconds);
            let is_waited_for = (0..waits).all(|_| {
                let is_within = wait <= budget.left();
                budget.progress(bytes, wait);
                is_within
            });
            assert_eq!(is_waited_for, expected, "{bytes} in {seconds} s, {waits} times");
        };
        check(HTTP_RATE_MIN, 1, 10_000, true);
        check(5 * HTTP_RATE_MIN, 5, 10_000, true);
        check(1, 1, 9, true);
        check(1, 1, 11, false);
        check(HTTP_RATE_MIN / 2, 1, 15, true);
        check(HTTP_RATE_MIN / 2, 1, 25, false);
    }
}
