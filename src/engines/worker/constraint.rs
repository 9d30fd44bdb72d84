//! Constrained decoding: a grammar from JSON or a JSON Schema masks the tokens that may come next.
//!
//! A schema comes from a client, so its cost is bounded: fuel for the grammar, for each mask and for
//! the answer, and a stop flag inside the computation of a mask.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use llguidance::api::{GrammarInit, StopReason, TopLevelGrammar};
use llguidance::earley::lexerspec::LexerSpec;
use llguidance::earley::{BiasComputer, ParserRecognizer};
use llguidance::panic_utils::catch_unwind;
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie};

use super::grammar_vocabulary::{GrammarVocabulary, Tokenize};
use super::watchdog::{GrammarStop, Stopped};
use crate::limits::engine::{
    GRAMMAR_BUILD_FUEL_MAX, GRAMMAR_BUILD_MAX, GRAMMAR_BYTES_MAX, GRAMMAR_ROW_ITEMS_MAX,
    GRAMMAR_STACK_BYTES, GRAMMAR_STATES_MAX, GRAMMAR_STEP_FUEL_MAX, GRAMMAR_STEP_ITEMS_MAX,
    GRAMMAR_SYMBOLS_MAX,
};
use crate::model::generate::Fault;
use crate::request::format::Format;
use crate::request::refusal::{Code, Refusal};
use crate::request::schema::constraint::excess;
use crate::request::schema::relax::relaxed;

/// Compiles grammars for one vocabulary; building the factory takes about 100 ms.
pub(super) struct Factory {
    compiler: Arc<Compiler>,
    /// A compilation that took too long and goes on.
    late: Option<JoinHandle<()>>,
}

/// What compiling takes.
struct Compiler(ParserFactory);

/// The grammar of one answer, with its state.
pub(super) struct Constraint {
    parser: TokenParser,
    /// Whether a token was accepted.
    has_begun: bool,
}

impl Factory {
    /// A factory for this vocabulary. With the model's tokenizer, bytes without a choice become tokens of their own.
    pub(super) fn new(trie: TokTrie, tokenize: Option<Tokenize>) -> Result<Factory, Fault> {
        let environment = Arc::new(GrammarVocabulary::new(trie, tokenize));
        let mut factory = ParserFactory::new_simple(&(environment as _)).map_err(|e| {
            Fault::ProtocolError(format!("the vocabulary cannot be constrained: {e}"))
        })?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.initial_lexer_fuel = GRAMMAR_BUILD_FUEL_MAX;
        limits.step_lexer_fuel = GRAMMAR_STEP_FUEL_MAX;
        limits.step_max_items = GRAMMAR_STEP_ITEMS_MAX;
        limits.max_items_in_row = GRAMMAR_ROW_ITEMS_MAX;
        limits.max_lexer_states = GRAMMAR_STATES_MAX;
        limits.max_grammar_size = GRAMMAR_SYMBOLS_MAX;
        // it would run a large expression over the whole vocabulary before the first token
        limits.precompute_large_lexemes = false;
        Ok(Factory { compiler: Arc::new(Compiler(factory)), late: None })
    }

    /// Compiles the grammar of a format; `None` for text. Setting `stop` ends the computation of its
    /// masks.
    ///
    /// # Errors
    /// [`Fault::Rejected`] if the schema can't be satisfied, is not supported or costs too much.
    pub(super) fn constrain(
        &mut self,
        format: &Format,
        stop: &GrammarStop,
        watchdog: Option<&mpsc::Sender<Stopped>>,
    ) -> Result<Option<Constraint>, Fault> {
        let schema = match format {
            Format::Text | Format::Label(_) | Format::Embedding => return Ok(None),
            Format::Json => json!({"type": "object"}),
            Format::Schema(schema) => (**schema).clone(),
        };
        if let Some(message) = excess(&schema) {
            return Err(refuse(message));
        }
        let mut parser = self.compile(schema, watchdog)?;
        // a prompt has one grammar, so this is the first one
        let _ = stop.set(parser.enable_cancellation());
        Ok(Some(Constraint { parser, has_begun: false }))
    }

    /// Compiles on a thread of its own, which has the stack for deep schemas. The library can't be
    /// stopped while it compiles: a thread that is late goes on, and the watchdog ends the process if
    /// the thread does not end.
    fn compile(
        &mut self,
        schema: Value,
        watchdog: Option<&mpsc::Sender<Stopped>>,
    ) -> Result<TokenParser, Fault> {
        if self.late.take_if(|late| late.is_finished()).is_none() && self.late.is_some() {
            let refusal = Refusal::new(Code::Busy, "another schema is still being compiled");
            return Err(Fault::Rejected(refusal));
        }
        let (done, result) = sync_channel(1);
        let (running, has_ended) = oneshot::channel::<Infallible>();
        let compiler = Arc::clone(&self.compiler);
        let compile = move || {
            let _running = running;
            // the library asserts what it takes for granted
            let _ = done.send(catch_unwind(AssertUnwindSafe(|| compiler.parser(schema))));
        };
        let thread = std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(GRAMMAR_STACK_BYTES)
            .spawn(compile)
            .map_err(|e| Fault::unavailable(format!("cannot start a compiler thread: {e}")))?;
        match result.recv_timeout(GRAMMAR_BUILD_MAX) {
            Ok(parser) => parser.map_err(|error| refuse(reason(&error.to_string()))),
            Err(_) => {
                self.late = Some(thread);
                if let Some(watchdog) = watchdog {
                    let _ = watchdog.try_send(Stopped::Compilation(has_ended));
                }
                let message = format!("its compilation exceeded {GRAMMAR_BUILD_MAX:?}");
                Err(refuse(reason(&message)))
            }
        }
    }
}

impl Compiler {
    fn parser(&self, schema: Value) -> anyhow::Result<TokenParser> {
        let schema = GrammarInit::Serialized(TopLevelGrammar::from_json_schema(compact(schema)));
        let environment = self.0.tok_env().clone();
        let (grammar, lexer) = schema.to_internal(Some(environment), self.0.limits().clone())?;
        self.try_first_bytes(lexer.clone())?;
        let init = GrammarInit::Internal(grammar, lexer);
        let mut parser = self.0.create_parser_from_init_default(init)?;
        parser.start_without_prompt();
        refuel(&mut parser);
        Ok(parser)
    }

    /// Makes the transitions for each first byte of an answer, with bounded fuel. The library makes them
    /// without a bound when it creates a parser: a pattern may need millions of expressions to tell
    /// whether a text can go on after its first character.
    fn try_first_bytes(&self, mut lexer: LexerSpec) -> anyhow::Result<()> {
        lexer.add_extra_lexemes(&self.0.extra_lexemes());
        let mut limits = self.0.limits().clone();
        let mut automaton = lexer.to_regex_vec(&mut limits)?;
        automaton.set_fuel(limits.initial_lexer_fuel);
        automaton.set_max_states(limits.max_lexer_states);
        let start = automaton.initial_state(&lexer.all_lexemes());
        for byte in 0..=u8::MAX {
            automaton.transition(start, byte);
            if let Some(error) = automaton.get_error() {
                anyhow::bail!("{error}");
            }
        }
        Ok(())
    }
}

impl Constraint {
    /// The mask of the tokens that may come next; it contains the end-of-generation tokens when the
    /// answer may end.
    ///
    /// # Errors
    /// [`Fault::Cancelled`] if the stop flag is set, [`Fault::Rejected`] if the mask costs too much.
    pub(super) fn allowed(&mut self) -> Result<SimpleVob, Fault> {
        if self.is_done() {
            return Ok(self.parser.token_env.tok_trie().eos_token_set());
        }
        self.step("the schema has no valid continuation", TokenParser::compute_mask)
    }

    /// Advances the grammar by the sampled token.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    pub(super) fn accept(&mut self, token: u32) -> Result<(), Fault> {
        self.step("the output violates the schema", |parser| {
            parser.consume_token(token)?;
            parser.check_stop().map(drop)
        })?;
        self.has_begun = true;
        Ok(())
    }

    /// The tokens that come next without a choice; the grammar is advanced by them.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    pub(super) fn take_forced(&mut self) -> Result<Vec<u32>, Fault> {
        if self.is_done() {
            return Ok(Vec::new());
        }
        self.step("the schema has no valid continuation", |parser| {
            let forced = parser.consume_ff_tokens()?;
            parser.check_stop()?;
            Ok(forced)
        })
    }

    /// Whether no further token is allowed.
    pub(super) fn is_done(&self) -> bool {
        self.parser.stop_reason() != StopReason::NotStopped
    }

    /// Carries out one step of the library with bounded fuel and memory.
    fn step<T>(
        &mut self,
        what: &str,
        step: impl FnOnce(&mut TokenParser) -> anyhow::Result<T>,
    ) -> Result<T, Fault> {
        let parser = &mut self.parser;
        let result = catch_unwind(AssertUnwindSafe(|| {
            refuel(parser);
            let result = step(parser)?;
            let bytes = parser.parser.lexer_stats().num_bytes;
            anyhow::ensure!(bytes <= GRAMMAR_BYTES_MAX, "the memory of its lexer is exceeded");
            Ok(result)
        }));
        result.map_err(|error| match parser.cancellation_handle() {
            Some(handle) if handle.is_cancelled() => Fault::Cancelled,
            Some(_) | None if self.has_begun => fault_of(what, &error),
            Some(_) | None => refuse(reason(&error.to_string())),
        })
    }
}

/// Sets the fuel and the most states of the next step. The library does that only where it begins a
/// mask, after it has advanced over forced bytes: here it begins an empty one.
fn refuel(parser: &mut TokenParser) {
    let computer = NoMask(parser.token_env.clone());
    // without a prefix the empty mask would be cached
    parser.parser.compute_bias(&computer, b" ");
}

/// Computes an empty mask.
struct NoMask(TokEnv);

impl BiasComputer for NoMask {
    fn compute_bias(&self, _recognizer: &mut ParserRecognizer<'_>, _start: &[u8]) -> SimpleVob {
        self.trie().alloc_token_set()
    }

    fn trie(&self) -> &TokTrie {
        self.0.tok_trie()
    }
}

/// Whether a message of the library is about a bound, and not about the schema's meaning.
fn is_bound(error: &str) -> bool {
    let bounds = [
        "too many",
        "too big",
        "too large",
        "too complex",
        "fuel",
        "exceeded",
        "max is",
        "unable to determine",
    ];
    let error = error.to_ascii_lowercase();
    bounds.iter().any(|bound| error.contains(bound))
}

fn fault_of(what: &str, error: &anyhow::Error) -> Fault {
    let error = error.to_string();
    if is_bound(&error) {
        return refuse(reason(&error));
    }
    Fault::ProtocolError(format!("{what}: {}", first_line(&error)))
}

fn refuse(message: String) -> Fault {
    Fault::Rejected(Refusal::field(Code::Invalid, "schema", message))
}

/// Why a schema is refused, with what to do if it costs too much.
fn reason(error: &str) -> String {
    let error = first_line(error);
    if is_bound(error) {
        return format!(
            "this schema costs too much as a constraint: {error}; use simpler patterns, smaller \
             repetition counts, narrower numbers and fewer alternatives"
        );
    }
    format!("this schema cannot be used as a constraint: {error}")
}

/// Leaves out what a constraint does not implement, and disables flexible white space unless the schema sets it: small models write it without end.
fn compact(schema: Value) -> Value {
    let mut schema = relaxed(schema);
    if let Value::Object(map) = &mut schema {
        map.entry("x-guidance").or_insert_with(|| json!({"whitespace_flexible": false}));
    }
    schema
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// One token of a vocabulary.
pub enum VocabToken {
    /// The bytes that it adds to a text.
    Text(Vec<u8>),
    /// A control token, by its name; no text matches it.
    Control(Vec<u8>),
}

/// Builds the trie of a vocabulary in the order of its ids. `ends` are the end-of-generation tokens,
/// the most common one first.
pub fn trie(tokens: impl Iterator<Item = VocabToken>, ends: &[u32]) -> TokTrie {
    let tokens: Vec<Vec<u8>> = tokens
        .map(|token| match token {
            VocabToken::Text(bytes) => bytes,
            VocabToken::Control(name) => {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_slice()].concat()
            }
        })
        .collect();
    let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    let info = TokRxInfo::new(count, ends.first().copied().unwrap_or_default());
    TokTrie::from(&info, &tokens).with_eos_tokens(ends)
}
