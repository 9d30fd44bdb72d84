//! Pilotlight: a service for small boards that answers prompts with a tiny local language model.
//!
//! A remote model (a peer device or a cloud provider) is asked only when the device is saturated or
//! lacks a capability, and each reply states where the job was routed and why.
//!
//! # Three properties
//! **One interface for models.** Everything that answers a prompt (an engine on the board, a
//! provider, a peer, the whole service) implements the trait [`model::generate::Generate`].
//! [`mcp::server`] serves any `Generate` as an MCP server; [`mcp::client`] makes a `Generate` of any
//! MCP server.
//!
//! **One scheduler.** [`scheduler`] is pure and synchronous, and owns all state that decides: it
//! takes an event and the time, and returns a list of effects. It reads no clock, file, socket or
//! token.
//!
//! **One path.** A request passes each layer once; its tokens go from the backend straight to the
//! client's interface.
//!
//! # Layers
//! A file imports only from lower layers, or from its own top-level module. `tests/architecture`
//! holds the table and checks it, and the rules below.
//!
//! ```text
//! 13-16 program     main, cli, daemon                     start and stop
//!    12 settings    config
//!    11 interfaces  ingress/{mqtt, http, mcp}             one client protocol each; trial: golden sets
//!    10 strategies  strategy                              several models for one job; benchmark
//!     9 execution   dispatch, backends, simulate, convert
//!     8 models      engines, providers, mcp, models; metrics
//!     7 resources   mqtt, net, store, device, wire, status, gguf, sandbox
//!     6 clock       clock                                 the only reader of a clock
//!   4-5 decisions   scheduler, decision, catalog, pressure, redact, model,      PURE
//!                   calibrate; above them fleet
//!   0-3 vocabulary  request, model/{context, health}, pressure/level,          PURE
//!                   limits, money, time
//! ```
//!
//! # One request
//! ```text
//! client   interface         dispatch         scheduler (pure)    backend task       engine (child)
//!  | bytes   |                 |                  |                   |                  |
//!  |-------->| parse once: Job |                  |                   |                  |
//!  |         |---- submit ---->|-- Arrived, now ->| admit, route      |                  |
//!  |         |                 |<-- [Start] ------|                   |                  |
//!  |         |                 |-- spawn ---------------------------->|---- MCP -------->|
//!  |<====== chunks in order, bounded =================================|<==== tokens =====|
//!  |         |                 |<------------- ended: usage or fault -|                  |
//!  |<- reply-|                 |-- Ended, now --->| free, start the next
//! ```
//!
//! # Invariants
//! 1. Only `scheduler` decides. No interface, backend or task picks a backend, drops a job or
//!    retries.
//! 2. Only `ingress` speaks a client's protocol. A [`request::refusal::Refusal`] has no status code.
//! 3. The scheduler never handles a token.
//! 4. Pure files use no runtime, clock, randomness or disk. The one exception is the channels of
//!    [`model`], which are data structures and need no runtime.
//! 5. No module of `ingress`, `strategy`, `dispatch` or `scheduler` depends on the kind of a backend.
//! 6. Private text never leaves the locality that its request permits.
//! 7. Every queue has a bound in [`limits`], every task has an owner, and every stop is awaited.
//! 8. A peer is trusted no more than a client; the number of hops is bounded.
//! 9. An MQTT request is acknowledged explicitly, and only after its reply: [`mqtt::AckGuard::ack`].

#![cfg_attr(
    fuzzing,
    allow(dead_code, unused_imports, reason = "the engines that use it are not built")
)]

// entry points
pub mod cli;
pub mod config;
pub mod daemon;
pub mod ingress;
// what answers a request
pub mod backends;
pub mod benchmark;
#[cfg(feature = "onnx")]
pub mod convert;
pub mod dispatch;
pub mod engines;
pub mod providers;
pub mod rollout;
pub mod simulate;
pub mod strategy;
pub mod trial;
// protocols, connections, disk, sensors
pub mod clock;
pub mod device;
pub mod gguf;
pub mod mcp;
pub mod metrics;
pub mod models;
pub mod mqtt;
pub mod net;
pub mod random;
#[cfg(feature = "engine")]
pub mod sandbox;
pub mod status;
pub mod store;
pub mod wire;
// decisions, pure
pub mod calibrate;
pub mod catalog;
pub mod decision;
pub mod fleet;
pub mod pressure;
pub mod redact;
pub mod scheduler;
// vocabulary, pure
pub mod limits;
pub mod model;
pub mod money;
pub mod request;
pub mod time;
