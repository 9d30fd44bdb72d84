//! Bounds of what one request or one model file can cost an engine.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Longest line at the socket of engines, in bytes: the arguments of an engine and its environment.
pub const ENGINE_ORDER_BYTES_MAX: usize = 64 * 1024;
/// Longest time until the service manager has started an engine. A unit starts in 20 to 200 ms; a board that
/// boots is slower.
pub const UNIT_START_MAX: Duration = Duration::from_secs(20);
/// Time between two looks at whether an engine in a unit of its own, which is ending, has ended.
pub const UNIT_WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Largest divisor of a `multipleOf`, in units of its last decimal place: the automaton of the
/// remainders has one state for each of them.
pub const MULTIPLE_OF_MAX: u32 = 1000;
/// Most patterns that one text must match together (`allOf`) in a grammar: six compile in milliseconds,
/// thirteen take seconds.
pub const PATTERNS_JOINED_MAX: usize = 6;
/// Most members of all `patternProperties` of a grammar, each of which is compared with each other one.
pub const PATTERN_PROPERTIES_MAX: usize = 32;
/// Longest time in which a grammar is compiled. Grammars of real schemas take 1 to 50 ms.
pub const GRAMMAR_BUILD_MAX: Duration = Duration::from_secs(1);
/// Stack of the thread that compiles a grammar, in bytes: references of 64 KiB of schema, nested, need a
/// quarter of it. Its pages are allocated when they are used.
pub const GRAMMAR_STACK_BYTES: usize = 64 * 1024 * 1024;
/// Fuel for compiling a grammar: new expressions of its lexer. 50,000 take about 1 ms on a PC and 10 ms
/// on a Raspberry Pi 3.
pub const GRAMMAR_BUILD_FUEL_MAX: u64 = 400_000;
/// Fuel for the token mask of one step, see [`GRAMMAR_BUILD_FUEL_MAX`]; a step that needs more refuses
/// the schema.
pub const GRAMMAR_STEP_FUEL_MAX: u64 = 100_000;
/// Memory of a grammar's lexer during one answer, in bytes; the lexer of an answer of 8,192 tokens in
/// bounded strings takes a quarter of it.
pub const GRAMMAR_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most parser items for the token mask of one step; 20,000 take about 1 ms on a PC.
pub const GRAMMAR_STEP_ITEMS_MAX: usize = 50_000;
/// Most parser items of one position of an answer, which are kept until its end.
pub const GRAMMAR_ROW_ITEMS_MAX: usize = 2000;
/// Most states of a grammar's lexer: each takes 1 to 2 KB.
pub const GRAMMAR_STATES_MAX: usize = 16_384;
/// Most symbols of a grammar.
pub const GRAMMAR_SYMBOLS_MAX: usize = 50_000;
/// Most keys, and most tensors, of a GGUF file: the largest models have some thousand.
pub const GGUF_ENTRIES_MAX: u64 = 65_536;
/// Largest head of a GGUF file, in bytes: a vocabulary of 260,000 tokens takes 10 MB.
pub const GGUF_HEAD_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Largest alignment of tensors, in bytes; 32 is usual, and a page is the most that helps.
pub const GGUF_ALIGNMENT_MAX: u64 = 64 * 1024;
/// Most layers of a model: llama.cpp's own bound, which it asserts.
pub const GGUF_LAYERS_MAX: u64 = 512;
/// Largest chat template, in bytes: those of models with tools have about 20 KB.
pub const TEMPLATE_BYTES_MAX: usize = 128 * 1024;
/// Text that a chat template may add to a conversation, in bytes: its system text and
/// [`FRAME_TOKENS_MAX`](super::FRAME_TOKENS_MAX) for each of [`MESSAGES_MAX`](super::MESSAGES_MAX) messages take a tenth of it.
pub const TEMPLATE_OUTPUT_BYTES_MAX: usize = 512 * 1024;
/// Memory that rendering a chat template may allocate, in bytes.
pub const TEMPLATE_MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Memory of an engine beside the weights, the cache and the working memory that are computed: program,
/// libraries, stacks of threads, a grammar.
pub const ENGINE_MEMORY_EXTRA_BYTES: u64 = 512 * 1024 * 1024;
/// Memory that an engine can be limited to, in MiB: the smallest engine of a test model takes about 100.
pub const ENGINE_MEMORY_MB: RangeInclusive<u64> = 64..=1024 * 1024;
/// Longest time in which an engine reacts to the cancellation of a request; after it the engine is
/// restarted. llama.cpp looks at the stop flag between two operations, a token mask between two
/// transitions.
pub const ENGINE_CANCEL_MAX: Duration = Duration::from_secs(5);
/// Cancelled requests whose end an engine watches: more than it can have at once.
pub const ENGINE_CANCELS_MAX: usize = 64;
/// Label sets whose examples an engine caches: one for each task of a device with many.
pub const LABEL_SETS_MAX: usize = 16;
/// Cache groups whose mean scores an engine keeps for each label set: about 1 KiB each for 16 labels.
pub const LABEL_GROUPS_MAX: usize = 64;
/// Fewest tokens of a beginning that prompts share and that is kept as a prefix; also how many more a longer one
/// must have. Fewer are read again in the time of a step or two.
pub const PREFIX_TOKENS_MIN: usize = 32;
/// Prefixes that an engine keeps in its KV cache.
pub const PREFIXES_MAX: u32 = 8;
/// Prompts with a prefix, after the two that showed it, until it is saved.
pub const PREFIX_SAVE_USES: u32 = 2;
/// Largest size of all saved prefixes of one model, in bytes: a beginning of 145 tokens takes 7 MB with a model of
/// 135 million parameters, 19 MB with one of 8 thousand million.
pub const PREFIX_FOLDER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most saved prefixes of one model.
pub const PREFIX_FILES_MAX: usize = 32;
/// Largest head of a saved prefix, in bytes: 32,768 tokens.
pub const PREFIX_HEAD_BYTES_MAX: u32 = 256 * 1024;
/// Largest file of what an engine keeps of a start, in bytes: some hundred are usual.
pub const START_RECORD_BYTES_MAX: u64 = 16 * 1024;
