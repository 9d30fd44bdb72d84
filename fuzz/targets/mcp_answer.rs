//! What an MCP server sends: handshake, context, progress and answers. The lines of the input are sent
//! one after the other; after a line with an id, the server waits for the client's next request. `$ID`
//! stands for the id of that request.
#![no_main]

use std::sync::LazyLock;

use pilotlight::limits::LINE_BYTES_MAX;
use pilotlight::mcp::client::{Patience, Remote, connect_watched};
use pilotlight::model::generate::Generate;
use pilotlight::model::out;
use pilotlight::request::client::Client;
use pilotlight::request::job::Job;
use pilotlight::wire::Ask;
use pilotlight_fuzz::{catalog, failed, target};
use rmcp::transport::async_rw::AsyncRwTransport;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

static JOBS: LazyLock<[Job; 3]> = LazyLock::new(|| {
    let ask = |text: &str| {
        let ask: Ask = serde_json::from_str(text).expect("a request");
        ask.check(&Client::known("app"), catalog()).expect("a request")
    };
    [
        ask(r#"{"prompt": "hi"}"#),
        ask(r#"{"prompt": "shut it", "tools": [{"name": "valve"}]}"#),
        ask(r#"{"prompt": "hi", "labels": {"a": [], "b": []}}"#),
    ]
});

target!(|script| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let (here, there) = tokio::io::duplex(64 * 1024);
    let script: Vec<Vec<u8>> = script.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    runtime.block_on(async {
        let server = tokio::spawn(serve(there, script));
        let (from, to) = tokio::io::split(here);
        let transport = AsyncRwTransport::new_client(from, to).with_max_line_length(LINE_BYTES_MAX);
        match connect_watched(transport, Patience::default()).await {
            Ok((remote, _open)) => {
                serde_json::to_string(remote.context()).expect("a context has JSON");
                for job in JOBS.iter() {
                    call(&remote, job).await;
                }
            }
            Err(fault) => failed(fault),
        }
        server.abort();
    });
});

async fn call(remote: &Remote, job: &Job) {
    let (out, mut chunks) = out::channel();
    let delivery = async {
        let mut count = 0;
        while let Some(chunk) = chunks.recv().await {
            // an empty one is a sign of life
            count += u32::from(!chunk.text.is_empty());
        }
        count
    };
    let (answer, count) = tokio::join!(remote.generate(job, out), delivery);
    match answer {
        Ok(usage) => assert!(count <= usage.chunks, "{count} pieces, {} stated", usage.chunks),
        Err(fault) => failed(fault),
    }
}

async fn serve(line: DuplexStream, script: Vec<Vec<u8>>) {
    let (from, mut to) = tokio::io::split(line);
    let mut requests = BufReader::new(from).lines();
    let mut script = script.into_iter();
    let mut id = "0".to_owned();
    // ends with the script, or with the client
    loop {
        let request = tokio::select! {
            biased;
            request = requests.next_line() => request,
            // it waits for something else
            () = idle() => Ok(Some(String::new())),
        };
        let Ok(Some(request)) = request else { return };
        let request: Value = serde_json::from_str(&request).unwrap_or_default();
        match (request.get("method"), request.get("id")) {
            (Some(_), Some(asked)) => id = asked.to_string(),
            _ if request.is_null() => {}
            // a notification, or an answer
            _ => continue,
        }
        loop {
            let Some(line) = script.next() else { return };
            let text = String::from_utf8_lossy(&line).replace("$ID", &id);
            let bytes = if text.contains('\u{fffd}') { line.clone() } else { text.into_bytes() };
            if to.write_all(&bytes).await.is_err() || to.write_all(b"\n").await.is_err() {
                return;
            }
            if line.windows(4).any(|part| part == b"\"id\"") {
                break;
            }
        }
    }
}

/// Waits until the client has nothing to do: all is in one thread.
async fn idle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}
