//! `mcp.json`, which another program may have written.
#![no_main]

use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::read::read;
use pilotlight_fuzz::{shown, target};

target!(|text| {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let variables: Variables = [("HOST", "example.org"), ("API_KEY", "hunter2"), ("EMPTY", "")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let (catalog, mistakes) = read(text, &variables);
    for mistake in &mistakes {
        shown(&mistake.message);
    }
    let again = read(text, &variables);
    assert_eq!((catalog, mistakes), again, "read differently");
});
