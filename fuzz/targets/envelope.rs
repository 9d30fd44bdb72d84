//! Signed presence and encrypted calls of MCP over MQTT. The first byte chooses: presence of a stranger, a
//! statement that is signed, or a call.
#![no_main]

use pilotlight::mcp::over_mqtt::fuzzing::{call, presence};
use pilotlight_fuzz::{shown, target};

target!(|input| {
    let [kind, bytes @ ..] = input else { return };
    match kind % 3 {
        0 => {
            let noted = presence(bytes, false);
            shown(&noted.expect_err("nobody has signed it"));
        }
        1 => {
            if let Err(message) = presence(bytes, true) {
                shown(&message);
            }
        }
        _ => {
            let (stranger, known) = call(bytes);
            assert_eq!(stranger, None, "nobody has encrypted it");
            assert_eq!(known.as_deref(), Some(bytes));
        }
    }
});
