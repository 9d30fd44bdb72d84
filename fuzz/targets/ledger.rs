//! The ledger of spending, and corrections of it.
#![no_main]

use pilotlight::money::{Hour, Span, Usd};
use pilotlight::store::fuzzing::{account, correction};
use pilotlight_fuzz::{shown, target};

target!(|text| {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match account(text) {
        Ok((books, line)) => {
            let (mut again, same) = account(&line).expect("what was read can be written");
            assert_eq!((&again, &same), (&books, &line), "changed");
            again.turn(Hour::at(86_400 * 20_000));
            let before = again.spent(Some("app"), Span::Hour);
            let entry = again.hold(7, "app", Usd::at_least(0.5));
            again.write(&entry);
            assert!(again.spent(Some("app"), Span::Hour) >= before, "a hold lowers what is spent");
            again.close();
        }
        Err(message) => shown(&message),
    }
    match correction(text) {
        Ok(one) => {
            let line = serde_json::to_string(&one).expect("a correction has JSON");
            assert_eq!(correction(&line), Ok(one), "changed");
        }
        Err(message) => shown(&message),
    }
});
