//! Signed configurations: the signature file and its update, the envelope, and a trust policy. The first
//! byte chooses.
#![no_main]

use pilotlight::fleet::fuzzing::{configuration, envelope, policy, signed};
use pilotlight_fuzz::{shown, target};

target!(|input| {
    let [kind, bytes @ ..] = input else { return };
    match kind % 4 {
        0 => shown(&signed(bytes).expect_err("no known key has signed it")),
        1 => match envelope(bytes) {
            Ok(written) => assert_eq!(envelope(&written).as_ref(), Ok(&written), "changed"),
            Err(message) => shown(&message),
        },
        2 => policy(bytes).iter().for_each(|message| shown(message)),
        _ => configuration(bytes).iter().for_each(|message| shown(message)),
    }
});
