//! Bounds of the service: every size, queue and wait, with its reason.
//!
//! Sizes are in bytes unless stated otherwise. Relations between bounds are checked at compile time
//! at the end of the file.

pub mod benchmark;
pub mod call;
pub mod config;
pub mod engine;
pub mod fleet;
pub mod golden;
pub mod liveness;
pub mod models;
pub mod reload;
pub mod rollout;
pub mod tools;

use std::time::Duration;

/// Largest request body or payload of any client protocol, in bytes.
///
/// A prompt of 4,096 tokens is about 20 KB of text; 1 MiB is enough for long conversations.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Largest prompt, all messages together, in bytes: half of a request, so that tools, examples and
/// JSON escapes fit beside it.
pub const PROMPT_BYTES_MAX: usize = 512 * 1024;
/// Most tokens that a chat template adds to one message. Templates of the tested models add 3 to 12.
pub const FRAME_TOKENS_MAX: usize = 32;
/// Most messages of one conversation. With their template tokens they fill the context of a small
/// model by themselves.
pub const MESSAGES_MAX: usize = 256;
/// Largest JSON Schema of a request, in bytes of JSON. The time to compile it into a grammar grows
/// with its size.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting of a JSON Schema. Schemas are traversed recursively.
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Most patterns (`pattern`, `patternProperties`) of all schemas of one request. Compiling so many of
/// [`SCHEMA_PROGRAM_BYTES_MAX`] takes about 20 ms and 4 MiB on an x86-64 server core.
pub const SCHEMA_PATTERNS_MAX: usize = 64;
/// Longest pattern of a schema, in bytes.
pub const SCHEMA_PATTERN_BYTES_MAX: usize = 512;
/// Largest compiled pattern of a schema, in bytes. `^\p{L}+$` takes 40 KB, `^.{1,255}$` 25 KB.
pub const SCHEMA_PROGRAM_BYTES_MAX: usize = 64 * 1024;
/// Requests whose schemas are compiled at a time; others wait for their turn.
pub const SCHEMA_COMPILES_MAX: usize = 2;
/// Most steps back of a pattern with look-around on one text; then the text does not match.
pub const SCHEMA_BACKTRACK_MAX: usize = 10_000;
/// Most applications of subschemas in the check of one value, which take about 50 ms; see
/// [`Schema::fits`](crate::request::schema::Schema::fits).
pub const SCHEMA_STEPS_MAX: u64 = 1_000_000;
/// Most applications of subschemas for which the place of a mistake is searched: each builds an error.
pub const SCHEMA_PLACE_STEPS_MAX: u64 = 2_000;
/// Most subschemas that apply to one part of a value.
pub const SCHEMA_ACTIVE_MAX: usize = 1024;
/// Most stop strings of one request. Each is searched for after every token.
pub const STOPS_MAX: usize = 8;
/// Longest stop string, in bytes: so much of a stream is withheld at most.
pub const STOP_BYTES_MAX: usize = 128;
/// Longest name of an application, task, device or skill, in bytes. Names are levels of MQTT topics
/// and labels of metrics.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest `id` of a request, in bytes: a UUID has 36, a prefix of the client's fits beside it.
pub const KEY_BYTES_MAX: usize = 128;

/// Most labels of one classification. A language model scores each label by itself.
pub const LABELS_MAX: usize = 64;
/// Longest example of a label, in bytes.
pub const EXAMPLE_BYTES_MAX: usize = 1024;
/// All examples of one classification together, in bytes: 1 KiB for each of 64 labels.
pub const EXAMPLES_BYTES_MAX: usize = 64 * 1024;
/// Most texts of one request for embeddings.
pub const EMBED_TEXTS_MAX: usize = 64;
/// Most alternatives that are reported for each token of an answer with their log-probabilities.
pub const TOP_LOGPROBS_MAX: u8 = 5;
/// Most tools of one request: the bound of the common providers.
pub const TOOLS_MAX: usize = 128;
/// All tools of one request together, in bytes of JSON: a quarter of a request.
pub const TOOLS_BYTES_MAX: usize = 256 * 1024;
/// Longest identifier of a tool call, in bytes. Some providers encode state of their own in it.
pub const TOOL_CALL_ID_BYTES_MAX: usize = 1024;
/// Most tool calls of one message.
pub const TOOL_CALLS_MAX: usize = 64;
/// Most rules of one task. They are evaluated one by one for each request.
pub const RULES_MAX: usize = 32;

/// Most tokens of one answer, whatever a request or a model states. At 10 tokens per second this is
/// 14 minutes, within [`DEADLINE_MAX`].
pub const OUTPUT_TOKENS_MAX: u32 = 8192;
/// Chunks of an answer that may wait between a backend and a client protocol. A full channel blocks
/// the backend (backpressure).
pub const CHUNKS_WAITING_MAX: usize = 64;
/// Chunks of an answer that may wait between an MCP connection and the caller.
///
/// One more than an answer can have: a slow reader never blocks the connection, which other calls
/// share, and a server that sends more violates the protocol.
pub const TAP_CHUNKS_MAX: usize = OUTPUT_TOKENS_MAX as usize + 1;
/// Progress notifications of one call to an MCP server: each chunk, and three signs of life for it.
pub const PROGRESS_MAX: usize = 4 * TAP_CHUNKS_MAX;
/// Notifications besides progress that an MCP server may send at once, and then each second. They are
/// not used; a chatty server logs a hundred lines a second.
pub const SERVER_NOTES_MAX: u32 = 4096;
/// See [`SERVER_NOTES_MAX`].
pub const SERVER_NOTES_PER_S: u32 = 256;
/// Requests that an MCP server may make at once, and then each second: a ping every few seconds.
pub const SERVER_REQUESTS_MAX: u32 = 256;
/// See [`SERVER_REQUESTS_MAX`].
pub const SERVER_REQUESTS_PER_S: u32 = 1;
/// Pages, entries and bytes of a list that is read from an MCP server when a connection is opened. A
/// service lists one resource for each of [`SERVERS_MAX`] models.
pub const LIST_PAGES_MAX: usize = 16;
/// See [`LIST_PAGES_MAX`].
pub const LIST_ITEMS_MAX: usize = 1024;
/// See [`LIST_PAGES_MAX`].
pub const LIST_BYTES_MAX: usize = 1024 * 1024;
/// Largest `ModelContext` that is read, in bytes: those of engines have about 2 KB.
pub const CONTEXT_BYTES_MAX: usize = 256 * 1024;
/// Largest message of an MCP server that is no child process, in bytes: an answer is three times in a
/// result with embeddings, and its JSON escapes.
pub const REMOTE_MESSAGE_BYTES_MAX: usize = 4 * ANSWER_BYTES_MAX;
/// Most bytes of one stream of events of an MCP server, with the JSON around each piece.
pub const MCP_STREAM_BYTES_MAX: usize = 16 * ANSWER_BYTES_MAX;
/// How often in a row an interrupted stream of events is tried to be resumed.
pub const MCP_RESUME_MAX: usize = 5;
/// Longest reason that a remote server states for a failure, in bytes; it is shown and logged.
pub const REASON_BYTES_MAX: usize = 512;
/// Most bytes of an error response of a remote server that are read.
pub const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Cancelled calls to one MCP server whose notification waits to be sent.
pub const CANCELS_WAITING_MAX: usize = RUNNING_JOBS_MAX;
/// Settled decisions that wait for one subscriber; a slower one loses the oldest.
pub const SETTLED_WAITING_MAX: usize = 256;
/// Longest text in a `ModelContext`, in bytes: a digest has 64, the reason of a fallback some more.
pub const CLAIM_BYTES_MAX: usize = 512;
/// Most entries of a list in a `ModelContext`: a multilingual model states some 30 languages.
pub const CLAIMS_MAX: usize = 64;
/// Most prompts at once that a server may state: the highest that a provider's entry may have.
pub const SLOTS_STATED_MAX: u32 = 256;
/// How far beyond twice its bound a figure that a backend states of its answer may be before it counts
/// as impossible: the text that gateways add to a prompt, in tokens, or a late clock, in milliseconds.
pub const FIGURE_SLACK: u32 = 1024;
/// Implausible answers of one backend, with none between that was plausible, after which it rests.
pub const IMPLAUSIBLE_MAX: u32 = 3;
/// How long it rests: so long that its answers can't disturb the scheduling of the others.
pub const IMPLAUSIBLE_REST: Duration = Duration::from_secs(600);
/// Longest answer that is kept in memory, in bytes: [`OUTPUT_TOKENS_MAX`] tokens are about 40 KB of
/// text, embeddings of many texts are the largest answers.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Longest line of JSON between a service and an engine, in bytes: an answer with every byte escaped
/// as six, twice in an MCP result, and its envelope.
pub const LINE_BYTES_MAX: usize = 12 * ANSWER_BYTES_MAX + 64 * 1024;

/// Most queued jobs, all priorities together. At one second per job, the last one waits for a minute.
pub const WAITING_JOBS_MAX: usize = 64;
/// Most bytes of the prompts of queued jobs: the memory of a small board is the limit, not the count
/// of jobs.
pub const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most running jobs, all backends together.
pub const RUNNING_JOBS_MAX: usize = 64;
/// Requests that may wait between the client protocols and the dispatcher.
pub const INBOX_MAX: usize = 128;
/// Applications whose use of the engines is recorded for fairness: more than can have a job at once,
/// so that an entry without jobs can always be evicted.
pub const APPS_MAX: usize = 2 * (WAITING_JOBS_MAX + RUNNING_JOBS_MAX);
/// Interval between two samples of all sensors. A board without a fan warms by about 0.25 °C in it.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Longest time of a sample; after it the sensors count as not answering.
pub const SAMPLE_MAX: Duration = Duration::from_secs(5);
/// Longest interval between two messages on the health topic.
pub const HEALTH_EVERY: Duration = Duration::from_secs(10);
/// Most thermal zones that are read. A Jetson Orin has nine, a Snapdragon board some 40.
pub const ZONES_MAX: usize = 64;
/// Time in which a thermal zone must move if the load changes; after two of them without it is stuck.
pub const ZONE_STUCK_BLOCK: Duration = Duration::from_secs(300);
/// Least share of an engine's time for queued batch jobs, which prevents their starvation.
pub const BATCH_SHARE: f64 = 0.1;
/// Measurements of an engine's token rate in the sliding window.
pub const RATES_KEPT: usize = 32;
/// Answer lengths of a template in the sliding window: ten of them lie above the 95th percentile.
pub const LENGTHS_KEPT: usize = 200;
/// Latencies of a remote backend in the sliding window.
pub const CLOUD_TIMES_KEPT: usize = 64;
/// Models whose rates are kept, whether they are in the catalog or not: twice [`SERVERS_MAX`].
pub const MODELS_LEARNED_MAX: usize = 64;
/// Interval between two writes of the learned statistics: each is a write to a flash card.
pub const LEARNED_EVERY: Duration = Duration::from_secs(600);
/// Largest file of learned statistics that is read, in bytes.
pub const LEARNED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Templates whose answer lengths are kept.
pub const TEMPLATES_MAX: usize = 128;
/// Applications whose spending is counted by itself in one month; further ones share the account of those that
/// are not listed.
pub const SPENDERS_MAX: usize = 1024;
/// Hours by which the ledger may be ahead of the clock; beyond it the clock was wrong before. 31 days: a
/// budget of a month that is used up blocks no longer.
pub const CLOCK_AHEAD_MAX: u32 = 31 * 24;
/// Hours by which the clock may be behind the ledger without being told: one hour begins within a small
/// correction of the clock.
pub const CLOCK_BEHIND_TOLD: u32 = 2;
/// The hour since 1970 before which a clock has not been set, as on a board that keeps no time without
/// power: the beginning of 2025, before this program.
pub const CLOCK_EARLIEST: u32 = 482_136;
/// Entries of the ledger file after which it is compacted.
pub const LEDGER_LINES_MAX: usize = 10_000;
/// Largest ledger that is read, in bytes: 1.6 KB for each of [`LEDGER_LINES_MAX`] entries, which have
/// about 100 bytes.
pub const LEDGER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Ledger entries that may wait to be written: several for each running job.
pub const LEDGER_WAITING_MAX: usize = 4 * RUNNING_JOBS_MAX;
/// Interval between two writes of the ledger where no spending cap is set: one flush for many
/// entries.
pub const LEDGER_REST: Duration = Duration::from_millis(20);
/// Longest wait at the start for the lock of a file that an ending service may still hold.
pub const FILE_LOCK_WAIT: Duration = Duration::from_secs(2);
/// Interval of the attempts to take such a lock.
pub const FILE_LOCK_EVERY: Duration = Duration::from_millis(20);
/// Corrections of the ledger that are kept with it, and that may wait to be applied.
pub const CORRECTIONS_MAX: usize = 64;
/// Longest reason of a correction, in bytes.
pub const CORRECTION_REASON_BYTES_MAX: usize = 256;
/// Interval at which a running service looks for corrections: a look into an empty folder.
pub const CORRECTIONS_EVERY: Duration = Duration::from_secs(2);
/// Longest time that the command waits for a running service to apply a correction.
pub const CORRECTION_WAIT_MAX: Duration = Duration::from_secs(15);
/// Models that answer a prompt in parallel with the strategy `compare`.
pub const COMPARED_MAX: usize = 3;
/// Most tokens in which a judge model selects one of several answers.
pub const JUDGE_TOKENS_MAX: u32 = 256;
/// Retry budget of remote models: one retry for so many first attempts. Retries add at most a tenth
/// to the load of a provider that fails.
pub const RETRY_EVERY: u32 = 10;
/// Most retries that are saved in the retry budget.
pub const RETRIES_SAVED_MAX: u32 = 10;
/// Most attempts of one job, the first included.
pub const ATTEMPTS_MAX: usize = 3;
/// Most services that a job is forwarded through; beyond it the job is refused, which ends a loop of
/// peers.
pub const HOPS_MAX: u8 = 4;
/// Most models of a catalog: sets of backends are 32 bits.
pub const SERVERS_MAX: usize = 32;
/// Most tasks of a catalog.
pub const TASKS_MAX: usize = 256;
/// Largest `mcp.json` that is read, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Shortest and longest time of a request until its deadline.
pub const DEADLINE_MIN: Duration = Duration::from_millis(1);
/// See [`DEADLINE_MIN`]. One hour is enough for a batch job on the slowest board.
pub const DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// Longest predicted time of an answer, and longest measured one: no answer may take longer than
/// [`DEADLINE_MAX`]. What is beyond counts as unknown.
pub const PREDICTION_MAX: Duration = DEADLINE_MAX;
/// Longest time after its deadline until a request has its one reply.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// Longest time that running jobs may take after a stop of the service was requested (drain).
pub const DRAIN_MAX: Duration = Duration::from_secs(20);
/// Longest wait at the end of the process for blocking system calls that can't be cancelled: a last
/// write to a pipe ends by itself, a name lookup may take long.
pub const LAST_CALLS_MAX: Duration = Duration::from_secs(1);

/// First and longest time that the circuit breaker of a failed backend is open: it doubles with each
/// failure.
pub const REST_MIN: Duration = Duration::from_millis(250);
/// See [`REST_MIN`].
pub const REST_MAX: Duration = Duration::from_secs(30);
/// Longest pause within an answer of an engine; after it the engine counts as hung.
///
/// The slowest measured step is 64 prompt tokens on a core of the Raspberry Pi 3, about 10 s.
pub const ENGINE_SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest time from the start of a server to its `ModelContext`: it includes loading the model.
pub const ENGINE_LOAD_MAX: Duration = Duration::from_secs(180);
/// Longest time in which a child process may end by itself after its input was closed.
pub const CHILD_EXIT_MAX: Duration = Duration::from_secs(2);

/// Longest time to connect to a provider or a peer.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest time that sent data may be without TCP acknowledgement (`TCP_USER_TIMEOUT`, RFC 5482);
/// after it the connection is closed, because the other host or the path to it is gone.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a name lookup where stale addresses are known.
///
/// RFC 8767 proposes 1.8 s for a resolver; the deadline of a prompt may be shorter than that.
pub const LOOKUP_WAIT_MAX: Duration = Duration::from_millis(500);
/// Longest age of stale addresses: the lower of the two bounds that RFC 8767 proposes.
pub const LOOKUP_STALE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest `retry_after` of a failed backend that its circuit breaker obeys.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Longest `retry_after` that another service states and a client is told: a day, the longest time after
/// which a used-up budget is worth another try.
pub const RETRY_STATED_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most bytes of a provider's response that are read, with the JSON around each token.
pub const PROVIDER_BYTES_MAX: usize = 16 * ANSWER_BYTES_MAX;
/// Most bytes of a provider's response that are buffered: one event of a stream, or a response that
/// is not streamed.
pub const PROVIDER_HELD_BYTES_MAX: usize = 2 * ANSWER_BYTES_MAX;

/// Largest MQTT packet that the service accepts, in bytes.
///
/// A broker discards larger ones silently [MQTT-3.1.2-25], so this is far more than
/// [`REQUEST_BYTES_MAX`]: a request of a size between the two is refused with a reply.
pub const MQTT_PACKET_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Messages of one subscription that may wait, and events of the MQTT client.
pub const MQTT_INBOX_MAX: usize = 128;
/// Messages with answers of one service over MQTT that may wait: one call's answer has many.
pub const MQTT_ANSWERS_MAX: usize = 8 * MQTT_INBOX_MAX;
/// Requests of the broker without acknowledgement (MQTT 5 receive maximum).
pub const MQTT_RECEIVE_MAX: u16 = 32;
/// Payload bytes of unacknowledged requests that are kept in memory, so that they can be written to disk.
pub const MQTT_HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests on disk that are acknowledged and not answered, in number and bytes: more than can be queued
/// and running.
pub const SPOOL_MAX: usize = 256;
/// See [`SPOOL_MAX`].
pub const SPOOL_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Publishes of the service without the broker's acknowledgement.
pub const MQTT_INFLIGHT_MAX: u16 = 64;
/// Replies that wait in memory for the broker, in number and bytes.
pub const OUTBOX_MAX: usize = 256;
/// See [`OUTBOX_MAX`].
pub const OUTBOX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Messages in hand that are marked on disk: all that the broker may have delivered, and as many that
/// an earlier process left.
pub const MARKS_MAX: usize = 2 * (MQTT_RECEIVE_MAX as usize + SPOOL_MAX);
/// Most times that the process may die with an accepted message in hand before it is refused. A power
/// failure or a kill is not its fault; so many in a row are.
pub const DEATHS_MAX: u8 = 5;
/// Replies that are kept for repeated requests with the same `id`.
pub const REPLAY_MAX: usize = 256;
/// Bytes of these replies.
pub const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// First and longest wait before a reconnection to the broker: it doubles with each failure.
pub const RECONNECT_MIN: Duration = Duration::from_millis(200);
/// See [`RECONNECT_MIN`].
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Budget of reconnections to a broker that accepts connections and ends them: one for each such
/// interval, and [`RECONNECT_BURST`] at once. A connection publishes the presence and what was not
/// acknowledged, so that there is less than one publish a second.
pub const RECONNECT_EVERY: Duration = Duration::from_secs(4);
/// See [`RECONNECT_EVERY`]. A weak network loses connections in bursts.
pub const RECONNECT_BURST: u32 = 10;
/// Least wait before a reconnection to a broker that is overloaded, by its reason code.
pub const RECONNECT_LATER: Duration = Duration::from_secs(10);
/// Wait before a reconnection that an operator has to make possible (login, identifier, ban): brokers
/// such as EMQX ban a client that connects more than 15 times in a minute.
pub const RECONNECT_RARELY: Duration = Duration::from_secs(60);
/// Interval between two attempts of a subscription that the broker refuses.
pub const SUBSCRIBE_EVERY: Duration = Duration::from_secs(60);
/// Most further attempts of a publish that the broker refuses for a cause that may pass.
pub const PUBLISH_RETRIES_MAX: u32 = 3;
/// First and longest time in which nothing is published to a topic that the broker refuses: it bounds
/// refused publishes to one a second for each topic.
pub const PUBLISH_REST_MIN: Duration = Duration::from_secs(1);
/// See [`PUBLISH_REST_MIN`].
pub const PUBLISH_REST_MAX: Duration = Duration::from_secs(30);
/// Publishes that wait for a further attempt: fewer than requests without acknowledgement, so that one
/// refused topic does not hold up the requests of others.
pub const PUBLISH_RETRIES_WAITING_MAX: usize = 16;
/// Topics whose refusals are remembered, of each connection.
pub const REFUSED_TOPICS_MAX: usize = 256;
/// Connections that end while the same message is the only one in flight, until it counts as the
/// cause: a network that fails does so at other moments too.
pub const CLOSES_MAX: u8 = 3;
/// Longest time in which a message that is suspected to end the connection is alone in flight: a broker
/// that closes the connection for a message does so when it receives it.
pub const SUSPECT_ALONE_MAX: Duration = Duration::from_secs(2);
/// How long a packet size that the broker did not state, but closed the connection for, is obeyed.
pub const PACKET_MAX_LEARNED: Duration = Duration::from_secs(3600);
/// Problems with the broker that the status lists, and how long it lists each after its last
/// occurrence.
pub const BROKER_PROBLEMS_MAX: usize = 32;
/// See [`BROKER_PROBLEMS_MAX`].
pub const BROKER_PROBLEM_KEPT: Duration = Duration::from_secs(3600);
/// Interval between two log lines about the same problem with the broker.
pub const BROKER_REPEAT_EVERY: Duration = Duration::from_secs(600);
/// Most log lines about problems with the broker in each [`BROKER_LINES_EVERY`]: topics are chosen by
/// clients, and a flash card wears out.
pub const BROKER_LINES_MAX: u32 = 20;
/// See [`BROKER_LINES_MAX`].
pub const BROKER_LINES_EVERY: Duration = Duration::from_secs(60);
/// MQTT keep-alive: the longest interval without a packet on the connection to the broker.
pub const MQTT_KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Shortest time between two publishes of the presence on one connection: another client may write to
/// its topic without end.
pub const PRESENCE_EVERY: Duration = Duration::from_secs(2);
/// MQTT session expiry: how long the broker keeps the session of a disconnected service.
pub const MQTT_SESSION_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// Clients that are connected to the embedded broker at once.
pub const BROKER_CLIENTS_MAX: usize = 64;
/// Connections that the embedded broker accepts in a second: each may be silent for ten seconds before it
/// is closed, and takes a file descriptor, of which a process mostly has 1,024.
pub const BROKER_CONNECTS_A_SECOND_MAX: u32 = 50;
/// Largest packet of the embedded broker, in bytes. A client that sends a larger one loses its connection,
/// so this is far more than [`REQUEST_BYTES_MAX`]: a request of a size between is refused with a reply.
pub const BROKER_PACKET_BYTES_MAX: usize = 12 * 1024 * 1024;
/// Retained messages of the embedded broker. A service has two, and an application one or two.
pub const BROKER_RETAINED_MAX: usize = 64;
/// Longest retained message of the embedded broker, in bytes: that of a service has 1 KB. All together
/// have at most 4 MiB.
pub const BROKER_RETAINED_BYTES_MAX: usize = 64 * 1024;
/// Sessions that the embedded broker keeps of clients that are not connected.
pub const BROKER_SESSIONS_MAX: usize = BROKER_CLIENTS_MAX;
/// Longest time for which the embedded broker keeps the session of a client that is not connected.
pub const BROKER_SESSION_EXPIRY: Duration = Duration::from_secs(3600);
/// Messages that the embedded broker keeps for a client that is slow or not connected, in number and
/// bytes; the oldest are dropped.
pub const BROKER_QUEUED_MAX: usize = 256;
/// See [`BROKER_QUEUED_MAX`]. At least one message of the largest size.
pub const BROKER_QUEUED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages on their way from the embedded broker to one client.
pub const BROKER_CHANNEL_MAX: usize = 64;
/// Subscriptions of one client of the embedded broker.
pub const BROKER_SUBSCRIPTIONS_MAX: usize = 64;
/// Topic aliases of one connection to the embedded broker: it keeps a topic for each.
pub const BROKER_ALIASES_MAX: u16 = 16;
/// Publishes of one client without the embedded broker's acknowledgement.
pub const BROKER_RECEIVE_MAX: u16 = 64;

/// Most concurrent HTTP requests with an answer: as many as there can be queued and running jobs.
pub const HTTP_REQUESTS_MAX: usize = WAITING_JOBS_MAX + RUNNING_JOBS_MAX;
/// Most of these requests of all other machines together: a quarter is left for this machine.
pub const HTTP_REMOTE_REQUESTS_MAX: usize = HTTP_REQUESTS_MAX / 4 * 3;
/// Most of these requests of one other machine. The programs of this machine share one address.
pub const HTTP_ADDRESS_REQUESTS_MAX: usize = HTTP_REQUESTS_MAX / 4;
/// Most of these requests of one application that has a token of its own.
pub const HTTP_APP_REQUESTS_MAX: usize = HTTP_REQUESTS_MAX / 2;
/// Time for which a connection may wait for its client before it can be closed for another one: a request
/// that is on its way is not cut off.
pub const HTTP_SHED_AFTER: Duration = Duration::from_millis(500);
/// Longest wait of a new connection of this machine for a place.
pub const HTTP_PLACE_WAIT: Duration = Duration::from_secs(2);
/// HTTP connections in excess of each of these bounds, so that a health check finds one while as many
/// requests as permitted are answered.
pub const HTTP_RESERVE: usize = 8;
/// Longest time in which an HTTP client may send the head of its request.
pub const HTTP_HEAD_MAX: Duration = Duration::from_secs(10);
/// Largest head of an HTTP request, in bytes: common servers accept 8 to 64 KB.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Longest time for the body of an HTTP request: [`REQUEST_BYTES_MAX`] over a line of 140 kbit/s.
pub const HTTP_BODY_MAX: Duration = Duration::from_secs(60);
/// Longest time without progress while an HTTP client sends a body or receives a response.
pub const HTTP_STALL_MAX: Duration = Duration::from_secs(10);
/// Least rate of an HTTP client, in bytes per second, as the mean beyond [`HTTP_STALL_MAX`]: without
/// it, one byte now and then would hold a connection. A GSM line has 1.2 KB/s.
pub const HTTP_RATE_MIN: usize = 1024;
/// Most bytes of request bodies that are partly received, all connections together: as in the queue.
pub const HTTP_BODIES_BYTES_MAX: usize = WAITING_BYTES_MAX;
/// Send buffer of an HTTP connection, in bytes, of which the kernel takes the double. Its own choice is
/// up to 4 MB for each client that does not read.
pub const HTTP_SEND_BUFFER_BYTES: u32 = 128 * 1024;
/// Most bytes of a refused body that are read before the connection is closed. Without that the
/// kernel resets the connection, and the client may not receive the reply.
pub const HTTP_LINGER_BYTES_MAX: usize = 16 * REQUEST_BYTES_MAX;
/// Longest time for reading a refused body.
pub const HTTP_LINGER_MAX: Duration = Duration::from_secs(2);

/// Most redaction rules. Each is matched against every prompt that leaves the device.
pub const REDACT_RULES_MAX: usize = 32;
/// Longest name of a redaction rule, in bytes: the name is a part of each placeholder.
pub const REDACT_NAME_BYTES_MAX: usize = 16;
/// Longest pattern of a redaction rule, in bytes.
pub const REDACT_PATTERN_BYTES_MAX: usize = 1024;
/// Largest compiled pattern, in bytes: `regex`'s own default is 10 MB.
pub const REDACT_PROGRAM_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most levels of escapes that are decoded before a text is matched, as in `%2540` and `&amp;#64;`. Text
/// that passed two programs has two; each level costs one more match of the text.
pub const REDACT_DECODINGS_MAX: usize = 4;
/// Most bytes of each end of a long line in which a value is found that the next line or message
/// continues: an e-mail address has at most 254 bytes (RFC 5321, 4.5.3.1.3).
pub const REDACT_JOINT_BYTES_MAX: usize = 256;
/// Most samples of one calibration.
pub const CALIBRATION_LINES_MAX: usize = 10_000;
/// Largest file of calibration samples, in bytes.
pub const CALIBRATION_BYTES_MAX: u64 = 32 * 1024 * 1024;

const _: () = assert!(PROMPT_BYTES_MAX <= REQUEST_BYTES_MAX);
const _: () = assert!(EXAMPLES_BYTES_MAX <= REQUEST_BYTES_MAX / 2);
const _: () = assert!(TOOLS_BYTES_MAX <= REQUEST_BYTES_MAX / 2);
const _: () = assert!(EMBED_TEXTS_MAX <= MESSAGES_MAX);
const _: () = assert!(PROMPT_BYTES_MAX <= WAITING_BYTES_MAX);
const _: () = assert!(SCHEMA_BYTES_MAX <= REQUEST_BYTES_MAX);
const _: () = assert!(APPS_MAX > WAITING_JOBS_MAX + RUNNING_JOBS_MAX);
const _: () = assert!(SERVERS_MAX <= 32);
const _: () = assert!(INBOX_MAX >= WAITING_JOBS_MAX);
const _: () = assert!(OUTBOX_MAX >= WAITING_JOBS_MAX + RUNNING_JOBS_MAX);
const _: () = assert!(REPLAY_MAX > WAITING_JOBS_MAX + RUNNING_JOBS_MAX);
const _: () = assert!(ANSWER_BYTES_MAX <= OUTBOX_BYTES_MAX);
const _: () = assert!(REQUEST_BYTES_MAX < HTTP_BODIES_BYTES_MAX);
const _: () = assert!(HTTP_ADDRESS_REQUESTS_MAX < HTTP_REMOTE_REQUESTS_MAX);
const _: () = assert!(HTTP_REMOTE_REQUESTS_MAX + HTTP_RESERVE < HTTP_REQUESTS_MAX);
const _: () = assert!(MQTT_RECEIVE_MAX as usize <= WAITING_JOBS_MAX);
const _: () = assert!(SPOOL_MAX >= WAITING_JOBS_MAX + RUNNING_JOBS_MAX);
const _: () = assert!(MQTT_INBOX_MAX > MQTT_RECEIVE_MAX as usize);
const _: () = assert!(MQTT_PACKET_BYTES_MAX as usize > REQUEST_BYTES_MAX);
const _: () = assert!(BROKER_PACKET_BYTES_MAX > REQUEST_BYTES_MAX);
const _: () = assert!(BROKER_PACKET_BYTES_MAX < BROKER_QUEUED_BYTES_MAX);
const _: () = assert!(BROKER_PACKET_BYTES_MAX <= MQTT_PACKET_BYTES_MAX as usize);
const _: () = assert!(BROKER_RECEIVE_MAX >= MQTT_INFLIGHT_MAX);
const _: () = assert!(PUBLISH_RETRIES_WAITING_MAX < MQTT_RECEIVE_MAX as usize);
const _: () = assert!(TAP_CHUNKS_MAX > OUTPUT_TOKENS_MAX as usize);
