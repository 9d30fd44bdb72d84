//! Requests of the HTTP interface: chat completions and embeddings.
#![no_main]

use pilotlight::ingress::http::fuzzing::{chat, embeddings};
use pilotlight_fuzz::{accepted, catalog, refused, target};

target!(|body| {
    for job in [chat(body, catalog()), embeddings(body, catalog())] {
        match job {
            Ok(job) => accepted(&job),
            Err(refusal) => refused(&refusal),
        }
    }
});
