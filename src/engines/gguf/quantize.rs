//! Quantizes a GGUF file to another weight format, once, for faster inference on this machine.

use std::ffi::CString;
use std::path::Path;

use anyhow::{Context, bail};

/// Format of quantized weights. llama.cpp gives a tensor another one if its rows do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum GgufWeights {
    /// 8 bits, blocks of 32: no measured loss against `Q4_1`, and prefill is twice as fast.
    #[value(name = "q8_0")]
    Q8_0,
    /// 6 bits, blocks of 256.
    #[value(name = "q6_k")]
    Q6K,
    /// 4 and 6 bits, blocks of 256: less loss than `Q4_0`, and slower.
    #[value(name = "q4_k_m")]
    Q4KM,
    /// 4 bits, blocks of 32: the fastest; requantizing 4-bit weights loses accuracy.
    #[value(name = "q4_0")]
    Q4_0,
}

impl GgufWeights {
    /// All, from the least loss to the smallest file.
    pub const ALL: [GgufWeights; 4] =
        [GgufWeights::Q8_0, GgufWeights::Q6K, GgufWeights::Q4KM, GgufWeights::Q4_0];

    /// The name in a ModelContext, as llama.cpp's.
    pub fn name(self) -> &'static str {
        match self {
            GgufWeights::Q8_0 => "Q8_0",
            GgufWeights::Q6K => "Q6_K",
            GgufWeights::Q4KM => "Q4_K_M",
            GgufWeights::Q4_0 => "Q4_0",
        }
    }
}

/// Quantizes `from` into `to`, atomically: `to` is complete or absent.
///
/// # Errors
/// If the model can't be read or the file can't be written.
#[expect(unsafe_code, reason = "the safe API lacks quantization")]
pub fn quantize(from: &Path, to: &Path, weights: GgufWeights) -> anyhow::Result<()> {
    super::cpu_variant();
    let part = to.with_extension("part");
    let path = |p: &Path| CString::new(p.to_str().unwrap_or_default());
    let (source, target) = (path(from)?, path(&part)?);
    if !from.is_file() {
        bail!("there is no model file {}", from.display());
    }
    // SAFETY: the function only returns a struct of defaults.
    let mut params = unsafe { llama_cpp_sys_2::llama_model_quantize_default_params() };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    params.nthread = i32::try_from(threads).unwrap_or(1);
    params.allow_requantize = true;
    params.ftype = match weights {
        GgufWeights::Q8_0 => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q8_0,
        GgufWeights::Q6K => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q6_K,
        GgufWeights::Q4KM => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_K_M,
        GgufWeights::Q4_0 => llama_cpp_sys_2::LLAMA_FTYPE_MOSTLY_Q4_0,
    };
    // SAFETY: both strings end with a zero byte and live through the call, as does `params`.
    let code = unsafe {
        llama_cpp_sys_2::llama_model_quantize(source.as_ptr(), target.as_ptr(), &raw const params)
    };
    if code != 0 {
        let _ = std::fs::remove_file(&part);
        bail!("llama.cpp could not convert {} (code {code})", from.display());
    }
    let written = std::fs::File::open(&part).and_then(|file| file.sync_all());
    written.with_context(|| format!("{} cannot be written", part.display()))?;
    std::fs::rename(&part, to).with_context(|| format!("{} cannot be written", to.display()))
}
