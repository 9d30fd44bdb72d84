//! JSON Schemas as constraints of an answer, in an engine. The input is a schema, a zero byte, and a
//! byte for each token that is chosen.
#![no_main]

use std::sync::{LazyLock, Mutex, PoisonError};

use pilotlight::engines::worker::fuzzing::Grammars;
use pilotlight::model::generate::Fault;
use pilotlight::request::schema::{Schema, SchemaBounds};
use pilotlight_fuzz::{failed, target};

static GRAMMARS: LazyLock<Mutex<Grammars>> = LazyLock::new(|| {
    // the library asserts what it takes for granted, and the engine catches that
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    Mutex::new(Grammars::new().expect("a factory"))
});

// an engine bounds the fuel and the time of a grammar itself
target!(within 1000 ms, |input| {
    let at = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
    let (schema, choices) = input.split_at(at);
    let Ok(schema) = serde_json::from_slice::<serde_json::Value>(schema) else { return };
    if SchemaBounds::default().check(&schema).is_err() {
        return;
    }
    let mut grammars = GRAMMARS.lock().unwrap_or_else(PoisonError::into_inner);
    match grammars.walk(Schema::from(schema), choices) {
        Err(fault @ Fault::Rejected(_)) => failed(fault),
        Err(fault) => panic!("an allowed token leads to {fault}"),
        Ok(_) => {}
    }
});
