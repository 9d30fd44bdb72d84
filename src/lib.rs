//! Pilotlight: a small flame that is always on. A quantized tiny language model answers prompts on
//! the device; a larger model elsewhere is asked only when the device can't, and the answer always
//! says why.
//!
//! # The idea in three sentences
//! **One port.** Whatever can answer a prompt (an engine on this board, a model elsewhere, a peer
//! device, *the whole service*) implements one trait, [`generate::Generate`]; [`mcp::server`]
//! turns any `Generate` into an MCP server and [`mcp::client`] turns any MCP server into a
//! `Generate`.
//! **One judge.** A pure, synchronous [`scheduler`] owns all state that decides: it takes an event
//! and the time and returns a list of effects; it never reads a clock, a file, a socket or a token.
//! **One way.** A request goes down through the floors once, and its tokens come straight back from
//! the backend to the door.
//!
//! # The floors
//! A room may know what lies below it, never above, never beside. `tests/house.rs` reads the `use`
//! lines and holds us to that, and to purity.
//!
//! ```text
//! 6 roof       main, cli, daemon, config                    know everyone, known by no one
//! 5 ingress    ingress/{mqtt, http}                         one client's protocol each
//! 4 rooms      dispatch, backends/{engine, gguf, onnx, provider, supervise}, simulate
//! 3 hands      mcp (port and lines), tls, broker, metrics, device
//! 2 shapes     wire (requests and replies as JSON), link (a backend's state), bus (MQTT), web (HTTP)
//! 1 judgement  scheduler, registry, pressure                PURE
//! 0 words      limits, prompt, labels, fit, model, money, health, strain, generate, time  PURE
//! ```
//!
//! # One request
//! ```text
//! asker     door             dispatch         scheduler (pure)    backend task       engine (child)
//!  | bytes   |                 |                  |                   |                  |
//!  |-------->| parse once: Job |                  |                   |                  |
//!  |         |---- submit ---->|-- Arrived, now ->| admit, route      |                  |
//!  |         |                 |<-- [Start] ------|                   |                  |
//!  |         |                 |-- spawn ---------------------------->|---- MCP -------->|
//!  |<====== pieces in order, bounded =================================|<==== tokens =====|
//!  |         |                 |<------------- ended: usage or fault -|                  |
//!  |<- reply-|                 |-- Ended, now --->| free, start the next
//! ```
//!
//! # What never happens here
//! 1. Only `scheduler` decides. No door, backend or task picks a backend, drops a job or retries.
//! 2. Only doors speak a client's protocol. A [`prompt::Refusal`] has no status code.
//! 3. The scheduler never touches a token.
//! 4. No pure file knows a runtime, the clock, chance or the disk. The one exception is the channel
//!    of [`generate`], which is a data structure and needs no runtime.
//! 5. No room knows which kind of backend it has.
//! 6. Private text never leaves the reach that its message allows.
//! 7. Nothing waits without a bound ([`limits`]), nothing runs without an owner, nothing stops
//!    without being awaited.
//! 8. A peer is trusted no more than a client; hops are bounded.
//! 9. A request is acknowledged to the broker only when its answer has been.

// entry points
pub mod cli;
pub mod config;
pub mod daemon;
pub mod ingress;
// what answers a request
pub mod backends;
#[cfg(feature = "onnx")]
pub mod convert;
pub mod dispatch;
pub mod engines;
pub mod providers;
pub mod simulate;
pub mod strategy;
// protocols, connections, disk, sensors
pub mod clock;
pub mod device;
pub mod mcp;
pub mod metrics;
pub mod mqtt;
pub mod net;
pub mod store;
pub mod wire;
// decisions, pure
pub mod calibrate;
pub mod catalog;
pub mod decision;
pub mod pressure;
pub mod redact;
pub mod scheduler;
// vocabulary, pure
pub mod limits;
pub mod model;
pub mod money;
pub mod request;
pub mod time;
