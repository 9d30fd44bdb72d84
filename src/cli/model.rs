//! `model`: quantizes and converts model files.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Quantize a GGUF model to another weight format.
    Quantize(Quantize),
    /// Convert a GGUF file or a sentence encoder folder to an ONNX model folder.
    Convert(Convert),
}

#[derive(Debug, Args)]
pub(super) struct Quantize {
    /// GGUF file to quantize.
    from: PathBuf,
    /// File to write; on an error no partial file remains.
    to: PathBuf,
    /// Weight format.
    #[cfg(feature = "gguf")]
    #[arg(long, default_value = "q8_0")]
    weights: crate::engines::gguf::quantize::GgufWeights,
}

#[derive(Debug, Args)]
pub(super) struct Convert {
    /// GGUF file (a Llama-family model with a byte-level BPE tokenizer), or folder of a
    /// BERT-family sentence encoder in the layout of sentence-transformers.
    from: PathBuf,
    /// Folder to write; on an error no partial folder remains.
    to: PathBuf,
    /// Weight format.
    #[cfg(feature = "onnx")]
    #[arg(long, default_value = "int8")]
    weights: crate::convert::OnnxWeights,
}

impl ModelCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            ModelCommand::Quantize(quantize) => quantize.run(),
            ModelCommand::Convert(convert) => convert.run(),
        }
    }
}

impl Quantize {
    #[cfg(feature = "gguf")]
    fn run(self) -> anyhow::Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = i32::try_from(threads).context("more processors than can be counted")?;
        crate::engines::gguf::quantize::quantize(&self.from, &self.to, self.weights, threads)?;
        print_line!("{}", self.to.display());
        Ok(())
    }

    #[cfg(not(feature = "gguf"))]
    fn run(self) -> anyhow::Result<()> {
        let _ = (self.from, self.to);
        Err(anyhow::anyhow!("this build has no GGUF engine")).context("model quantize")
    }
}

impl Convert {
    #[cfg(feature = "onnx")]
    fn run(self) -> anyhow::Result<()> {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let progress = |done, all| {
            if is_terminal {
                eprint!("\rlayer {done} of {all}{}", if done == all { "\n" } else { "" });
            }
        };
        crate::convert::convert(&self.from, &self.to, self.weights, progress)?;
        print_line!("{}", self.to.display());
        Ok(())
    }

    #[cfg(not(feature = "onnx"))]
    fn run(self) -> anyhow::Result<()> {
        let _ = (self.from, self.to);
        Err(anyhow::anyhow!("this build has no ONNX engine")).context("model convert")
    }
}
