//! Every bound of the service in one place, and how the bounds relate.

use std::time::Duration;

/// Largest request body or payload that any door reads, in bytes.
///
/// A 4,096-token prompt is about 20 KB of text; 1 MiB leaves room for long chats.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Largest prompt (all messages together) that is admitted, in bytes.
pub const PROMPT_BYTES_MAX: usize = 512 * 1024;
/// Tokens that a model's template puts around one message, at most: the known ones take 3 to 12.
pub const FRAME_TOKENS_MAX: usize = 32;
/// Most messages in one conversation.
pub const MESSAGES_MAX: usize = 256;
/// Largest JSON Schema that a request may carry, in bytes of JSON.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting of a JSON Schema.
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Most stop strings of one request.
pub const STOPS_MAX: usize = 8;
/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 128;
/// Longest request id, correlation datum, application, task or device name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest `id` of a request, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

/// Most labels of one classification.
pub const LABELS_MAX: usize = 64;
/// Longest example of a label, in bytes.
pub const EXAMPLE_BYTES_MAX: usize = 1024;
/// All examples of one classification together, in bytes.
pub const EXAMPLES_BYTES_MAX: usize = 64 * 1024;
/// Sets of labels that an engine keeps what it has learned of.
pub const LABEL_SETS_MAX: usize = 16;
/// Most texts that are embedded at once.
pub const EMBED_TEXTS_MAX: usize = 64;
/// Most other tokens that are told at the place of each token of an answer.
pub const TOP_LOGPROBS_MAX: u8 = 5;
/// Most tools that one request may offer: as many as the providers take.
pub const TOOLS_MAX: usize = 128;
/// All tools of one request together, in bytes of JSON.
pub const TOOLS_BYTES_MAX: usize = 256 * 1024;
/// Longest name of a call, in bytes; some providers pack their own notes into it.
pub const TOOL_CALL_ID_BYTES_MAX: usize = 1024;
/// Most calls that one message may hold.
pub const TOOL_CALLS_MAX: usize = 64;
/// Most rules of one task.
pub const RULES_MAX: usize = 32;

/// Most tokens that one answer may have, whatever a request or a model asks for.
pub const OUTPUT_TOKENS_MAX: u32 = 8192;
/// Chunks that may wait between a backend and a door before the backend is held back.
pub const CHUNKS_WAITING_MAX: usize = 64;
/// Chunks that may wait between the MCP line and the caller.
///
/// One more than an answer can have: the line never blocks on one slow reader, and a server that
/// sends more than it may is at fault.
pub const TAP_CHUNKS_MAX: usize = OUTPUT_TOKENS_MAX as usize + 1;
/// Longest answer that is kept in memory, in bytes.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Longest line of JSON between a service and an engine, in bytes: a request or an answer with
/// every byte escaped, twice in a result, and the frame around it.
pub const LINE_BYTES_MAX: usize = 12 * ANSWER_BYTES_MAX + 64 * 1024;

/// Most jobs that wait at once, over all classes. A power of two is not needed.
pub const WAITING_JOBS_MAX: usize = 64;
/// Most bytes of prompts that wait at once.
pub const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most jobs that run at once, over all backends.
pub const RUNNING_JOBS_MAX: usize = 64;
/// Requests that may stand between the doors and the dispatcher.
pub const INBOX_MAX: usize = 128;
/// Applications whose use of the engines is remembered.
pub const APPS_MAX: usize = 2 * (WAITING_JOBS_MAX + RUNNING_JOBS_MAX);
/// Time between two readings of all sensors.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// How long a reading may take before its sensors count as silent.
pub const SAMPLE_MAX: Duration = Duration::from_secs(5);
/// How often the device says how it is, at least.
pub const HEALTH_EVERY: Duration = Duration::from_secs(10);
/// Thermal zones that are looked at.
pub const ZONES_MAX: usize = 32;
/// Share of an engine's time that batch jobs get at least while they wait.
pub const BATCH_SHARE: f64 = 0.1;
/// Measurements of an engine's rates that are kept.
pub const RATES_KEPT: usize = 32;
/// Lengths of a template's answers that are kept.
pub const LENGTHS_KEPT: usize = 200;
/// Times of another machine's answers that are kept.
pub const CLOUD_TIMES_KEPT: usize = 64;
/// Models whose rates are kept, whether they are here or not.
pub const MODELS_LEARNED_MAX: usize = 64;
/// How often what was learned is written down, at most.
pub const LEARNED_EVERY: Duration = Duration::from_secs(600);
/// Largest file of what was learned that is read, in bytes.
pub const LEARNED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Templates of which lengths are kept.
pub const TEMPLATES_MAX: usize = 128;
/// Applications whose spending is counted in one month; further ones may not spend.
pub const SPENDERS_MAX: usize = 1024;
/// Lines of the ledger after which it is written anew.
pub const LEDGER_LINES_MAX: usize = 10_000;
/// Largest ledger that is read, in bytes.
pub const LEDGER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Lines that may wait to be written into the ledger.
pub const LEDGER_WAITING_MAX: usize = 4 * RUNNING_JOBS_MAX;
/// Between two writings of the ledger where no cap asks for more.
pub const LEDGER_REST: Duration = Duration::from_millis(20);
/// Longest wait, at the start, for a service that still keeps the books and may be ending.
pub const LEDGER_LOCK_WAIT: Duration = Duration::from_secs(2);
/// Models that are asked at once to compare their answers.
pub const COMPARED_MAX: usize = 3;
/// Most tokens in which a model says which of several answers is best.
pub const JUDGE_TOKENS_MAX: u32 = 256;
/// First requests for which a failed model elsewhere may be asked once more: one in ten.
pub const RETRY_EVERY: u32 = 10;
/// Most retries that are saved up while nothing fails.
pub const RETRIES_SAVED_MAX: u32 = 10;
/// Most attempts that one job gets, the first one counted.
pub const ATTEMPTS_MAX: usize = 3;
/// Most services that a job may pass through before it is refused.
pub const HOPS_MAX: u8 = 4;
/// Most models that one catalog may hold.
pub const SERVERS_MAX: usize = 32;
/// Most tasks that one catalog may hold.
pub const TASKS_MAX: usize = 256;
/// Largest `mcp.json` that is read, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Shortest and longest time that a request may give us.
pub const DEADLINE_MIN: Duration = Duration::from_millis(1);
/// See [`DEADLINE_MIN`]. An hour covers a batch on the slowest board.
pub const DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// How long after its deadline a request has had its one answer at the latest.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// How long running work may go on after a stop was asked for.
pub const DRAIN_MAX: Duration = Duration::from_secs(20);
/// How long the end of the program waits for calls to the system that can't be stopped: a last write to
/// a pipe ends by itself, the lookup of a name may not for a long time.
pub const LAST_CALLS_MAX: Duration = Duration::from_secs(1);

/// How long a failed backend rests before it is tried again, first and at most.
pub const REST_MIN: Duration = Duration::from_millis(250);
/// See [`REST_MIN`].
pub const REST_MAX: Duration = Duration::from_secs(30);
/// How long an engine may be silent in the middle of an answer before it counts as hung.
///
/// The slowest measured step is 64 prompt tokens on a Raspberry Pi 3 class core, about 10 s.
pub const ENGINE_SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a server may take from its start to stating its `ModelContext`.
pub const ENGINE_LOAD_MAX: Duration = Duration::from_secs(180);
/// How long a child may take to end by itself once its input is closed.
pub const CHILD_EXIT_MAX: Duration = Duration::from_secs(2);

/// How long the way to a provider or a peer may take to open.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long what was sent there may stay without the acknowledgement of its TCP: then the line is given
/// up, for the other side, or the way to it, is gone without a word.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);
/// How long a lookup of a name is waited for where addresses from before are known.
///
/// RFC 8767 proposes 1.8 s for a resolver; a prompt's deadline may be shorter than that.
pub const LOOKUP_PATIENCE: Duration = Duration::from_millis(500);
/// How old such addresses may be: the lower of the two bounds that RFC 8767 proposes.
pub const LOOKUP_KNOWN_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest `retry_after` of a failed backend that its circuit breaker obeys.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Most bytes of a provider's answer that are read, its frame included.
pub const PROVIDER_BYTES_MAX: usize = 16 * ANSWER_BYTES_MAX;
/// Most bytes of it that are held at once: a line of an event, or an answer that comes whole.
pub const PROVIDER_HELD_BYTES_MAX: usize = 2 * ANSWER_BYTES_MAX;

/// Largest packet that the broker may hand us, in bytes.
///
/// A broker drops a larger one without a word [MQTT-3.1.2-25], so this is far more than
/// [`REQUEST_BYTES_MAX`]: what lies between is answered with a refusal.
pub const MQTT_PACKET_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Messages that may stand between the line to the broker and the door.
pub const MQTT_INBOX_MAX: usize = 128;
/// Requests that the broker may have handed us without our acknowledgement.
pub const MQTT_RECEIVE_MAX: u16 = 32;
/// Our own publishes that may be without the broker's acknowledgement.
pub const MQTT_INFLIGHT_MAX: u16 = 64;
/// Answers that wait in memory for the broker, in number and bytes.
pub const OUTBOX_MAX: usize = 256;
/// See [`OUTBOX_MAX`].
pub const OUTBOX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Answers that are kept to be given again for the same key.
pub const REPLAY_MAX: usize = 256;
/// Bytes of answers that are kept to be given again.
pub const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Wait before the first and at most before any further attempt to reach the broker.
pub const RECONNECT_MIN: Duration = Duration::from_millis(200);
/// See [`RECONNECT_MIN`].
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Interval at which an idle line to the broker is proven alive.
pub const MQTT_KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long the broker keeps our session when we are away.
pub const MQTT_SESSION_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// Longest first part of the topics of a service that is asked over MQTT, in bytes.
pub const SERVICE_TOPIC_BYTES_MAX: usize = 256;
/// Longest part of an answer over MQTT that goes in one message, in bytes: many brokers take no more
/// than 128 or 256 KiB.
pub const MQTT_PART_BYTES_MAX: usize = 64 * 1024;
/// How long a call over MQTT may wait until a worker has taken it.
pub const CALL_TAKEN_MAX: Duration = Duration::from_secs(5);
/// Workers of one service that a caller knows of.
pub const WORKERS_MAX: usize = 1024;
/// Calls that a worker serves at once.
pub const CALLS_MAX: usize = WAITING_JOBS_MAX + RUNNING_JOBS_MAX;
/// Calls that a worker remembers, so that it serves none twice.
pub const CALLS_REMEMBERED_MAX: usize = 1024;

/// Most HTTP connections that are served at once.
pub const HTTP_CONNECTIONS_MAX: usize = 128;
/// How long an HTTP client may take to send its request's head.
pub const HTTP_HEAD_MAX: Duration = Duration::from_secs(10);
/// How much of a body that was refused is still read before its connection is closed; without it
/// the kernel resets the connection and the client may never see why.
pub const HTTP_LINGER_BYTES_MAX: usize = 16 * REQUEST_BYTES_MAX;
/// How long that may take.
pub const HTTP_LINGER_MAX: Duration = Duration::from_secs(2);

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
const _: () = assert!(MQTT_RECEIVE_MAX as usize <= WAITING_JOBS_MAX);
const _: () = assert!(MQTT_INBOX_MAX > MQTT_RECEIVE_MAX as usize);
const _: () = assert!(MQTT_PACKET_BYTES_MAX as usize > REQUEST_BYTES_MAX);
const _: () = assert!(TAP_CHUNKS_MAX > OUTPUT_TOKENS_MAX as usize);
/// Most rules of what is hidden from the cloud.
pub const REDACT_RULES_MAX: usize = 32;
/// Longest name of such a rule, in bytes.
pub const REDACT_NAME_BYTES_MAX: usize = 16;
/// Longest pattern of such a rule, in bytes.
pub const REDACT_PATTERN_BYTES_MAX: usize = 1024;
/// Largest program that a pattern may become, in bytes.
pub const REDACT_PROGRAM_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most samples that a calibration takes.
pub const CALIBRATION_LINES_MAX: usize = 10_000;
/// Largest file of samples, in bytes.
pub const CALIBRATION_BYTES_MAX: u64 = 32 * 1024 * 1024;
