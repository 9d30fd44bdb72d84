//! JSON Schemas of requests: bounds, compilation, and the check of an answer. The input is a schema,
//! then answers.
#![no_main]

use pilotlight::request::format::{self, Format};
use pilotlight::request::schema::{Schema, SchemaBounds};
use pilotlight_fuzz::{shown, target};
use serde_json::{Deserializer, Value};

target!(|input| {
    let mut values = Deserializer::from_slice(input).into_iter::<Value>().map_while(Result::ok);
    let Some(schema) = values.next() else { return };
    if let Err(mistake) = SchemaBounds::default().check(&schema) {
        return shown(&mistake.message());
    }
    let schema = Schema::from(schema);
    if let Err(message) = schema.compile() {
        shown(&message);
    }
    for answer in values.take(4) {
        let fits = schema.fits(&answer);
        let checked = format::check(&Format::Schema(schema.clone()), &answer.to_string());
        assert_eq!(fits.is_ok(), checked.is_ok(), "an answer and its text differ: {checked:?}");
        if let Err(message) = checked {
            shown(&message);
        }
    }
});
