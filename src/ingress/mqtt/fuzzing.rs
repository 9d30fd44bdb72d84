//! Entry point of the fuzz target `payload`: the payload of a request.

use crate::request::refusal::Refusal;
use crate::wire::Ask;

/// The request in a payload.
///
/// # Errors
/// As the interface.
pub fn ask(payload: &[u8]) -> Result<Ask, Refusal> {
    super::ask_of(payload)
}
