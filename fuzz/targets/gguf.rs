//! Heads of model files, with the file's own length, and as if much more followed.
#![no_main]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use nix::sys::memfd::{MFdFlags, memfd_create};
use pilotlight::gguf::fuzzing::check;
use pilotlight_fuzz::{shown, target};

target!(|head| {
    let mut file = File::from(memfd_create("gguf", MFdFlags::MFD_CLOEXEC).expect("a file"));
    file.write_all(head).expect("a file");
    let length = head.len() as u64;
    for length in [length, length + (1 << 32)] {
        file.seek(SeekFrom::Start(0)).expect("a file");
        if let Err(message) = check(&file, length) {
            shown(&message);
        }
    }
});
