//! One job at one backend.

use std::time::Instant;

use super::egress::EgressGuard;
use crate::clock;
use crate::limits::ANSWER_BYTES_MAX;
use crate::model::generate::{Chunk, Fault, Generate, Out, Usage, channel};
use crate::redact::Restorer;
use crate::store::ledger::Pending;

/// An attempt that worked.
pub(super) struct AttemptAnswer {
    pub(super) usage: Usage,
    /// The answer, if the asker gets it only when it is clear that it counts.
    pub(super) kept: Option<String>,
    /// When its first piece was there, if so.
    pub(super) first: Option<Instant>,
}

/// One attempt, once what it may cost stands in the books.
pub(super) async fn paid(
    held: Option<Pending>,
    generate: &dyn Generate,
    passage: EgressGuard<'_>,
    out: &mut Out,
) -> Result<AttemptAnswer, Fault> {
    if let Some(held) = held {
        held.done().await?;
    }
    attempt(generate, passage, out).await
}

/// One attempt. An answer that nobody reads piece by piece is kept back: another may still be
/// wanted instead. What was hidden from the model is put back on the way.
async fn attempt(
    generate: &dyn Generate,
    passage: EgressGuard<'_>,
    out: &mut Out,
) -> Result<AttemptAnswer, Fault> {
    let is_buffered = passage.job().is_buffered();
    let restorer = passage.restorer();
    if !is_buffered && restorer.is_none() {
        let usage = generate.generate(passage.job(), out).await?;
        return Ok(AttemptAnswer { usage, kept: None, first: None });
    }
    let (mut inner, mut chunks) = channel();
    let read = async {
        let mut reader =
            ChunkReader { out, kept: is_buffered.then(String::new), first: None, bytes: 0 };
        let mut restorer = restorer;
        while let Some(Chunk { text, .. }) = chunks.recv().await {
            let told = match &mut restorer {
                Some(restorer) => restorer.push(&text),
                None => text,
            };
            reader.take(told).await?;
        }
        let left = restorer.map(Restorer::finish).unwrap_or_default();
        if !left.is_empty() {
            reader.take(left).await?;
        }
        Ok((reader.kept, reader.first, reader.out.written()))
    };
    let work = async {
        let result = generate.generate(passage.job(), &mut inner).await;
        drop(inner);
        result
    };
    let (mut usage, (kept, first, written)) = futures::try_join!(work, read)?;
    passage.restore(&mut usage);
    let chunks = if kept.is_some() { usage.chunks } else { written };
    Ok(AttemptAnswer {
        usage: Usage { chunks, ..usage },
        first: first.filter(|_| kept.is_some()),
        kept,
    })
}

/// Where the pieces go: on to the asker, or together.
struct ChunkReader<'a> {
    out: &'a mut Out,
    kept: Option<String>,
    first: Option<Instant>,
    bytes: usize,
}

impl ChunkReader<'_> {
    async fn take(&mut self, text: String) -> Result<(), Fault> {
        if text.is_empty() {
            self.out.alive();
            return Ok(());
        }
        self.first.get_or_insert_with(clock::now);
        self.bytes += text.len();
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(Fault::ProtocolError("the answer exceeds the size limit".to_owned()));
        }
        match &mut self.kept {
            Some(kept) => kept.push_str(&text),
            None => self.out.write(text).await.map_err(|_| Fault::Cancelled)?,
        }
        Ok(())
    }
}
