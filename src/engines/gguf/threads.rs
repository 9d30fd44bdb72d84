//! Threads of a context that exists: the safe API sets them only when it is made.

use llama_cpp_2::context::LlamaContext;

use crate::engines::worker::Threads;

/// Sets the threads of the next steps. Without effect if the context can't be found.
#[expect(unsafe_code, reason = "the safe API has no setter")]
pub(super) fn set(context: &mut LlamaContext<'_>, threads: Threads) {
    let Some(address) = address(context) else { return };
    let raw = std::ptr::with_exposed_provenance_mut::<llama_cpp_sys_2::llama_context>(address);
    // SAFETY: at this pinned version the text of a context has the pointer that it owns, and `context` is borrowed
    // until the call returns. llama.cpp reads the numbers at the next evaluation.
    unsafe { llama_cpp_sys_2::llama_set_n_threads(raw, number(threads.one), number(threads.many)) }
}

/// The number of threads as llama.cpp takes it; at least one.
pub(super) fn number(threads: u32) -> i32 {
    i32::try_from(threads.max(1)).unwrap_or(1)
}

/// The address of llama.cpp's own context, which only the text of the safe one tells.
fn address(context: &LlamaContext<'_>) -> Option<usize> {
    address_in(&format!("{context:?}"))
}

fn address_in(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("LlamaContext { context: 0x")?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit())?;
    usize::from_str_radix(&rest[..end], 16).ok().filter(|address| *address != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_nothing_else() {
        assert_eq!(address_in("LlamaContext { context: 0x5a40, .. }"), Some(0x5a40));
        for text in [
            "LlamaContext { context: 0x0 }",
            "LlamaContext { 0x5a40 }",
            "0x5a40",
            "LlamaContext { context: 0x",
        ] {
            assert_eq!(address_in(text), None, "{text}");
        }
    }
}
