//! Random bytes from the system's generator, which nobody can predict: for keys and for identifiers
//! that must not be guessed. Everything else draws from `fastrand`.

use std::io;

use ring::rand::{SecureRandom, SystemRandom};

/// Random bytes.
///
/// # Errors
/// If the system has no random numbers.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(bytes)
}

/// A random identifier: 32 hexadecimal digits.
///
/// # Errors
/// As [`bytes()`].
pub fn id() -> io::Result<String> {
    Ok(format!("{:032x}", u128::from_be_bytes(bytes()?)))
}
