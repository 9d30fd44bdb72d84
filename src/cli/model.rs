//! `model`: the models of the configuration, and quantized and converted model files.

mod artefacts;
#[cfg(feature = "gguf")]
mod prepare;
mod report;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::DONE;

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Download the models of mcp.json that are missing and are for this board.
    Pull {
        /// Names of models (default: all).
        names: Vec<String>,
        /// Print JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// List the models of mcp.json: size, licence, state, and the servers that use each.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compare the digests of all files of the models with mcp.json; exit code 3 if one differs or is
    /// missing.
    Verify {
        /// Names of models (default: all that are for this board).
        names: Vec<String>,
    },
    /// List the files of the model store that no configuration names, or remove them.
    Prune {
        /// Remove them.
        #[arg(long)]
        yes: bool,
    },
    /// Copy the models of mcp.json that are missing from a folder, such as a USB stick, by their digests.
    Import {
        /// Folder or file.
        path: PathBuf,
    },
    /// Quantize a GGUF model to another weight format.
    Quantize(Quantize),
    /// Find by measurement which weights of a GGUF model are the best for this machine, and write them.
    #[cfg(feature = "gguf")]
    Prepare(prepare::PrepareArgs),
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
    pub(super) async fn run(self, config: Option<&Path>) -> anyhow::Result<u8> {
        match self {
            ModelCommand::Pull { names, json } => {
                Box::pin(artefacts::pull(config, &names, json)).await
            }
            ModelCommand::List { json } => artefacts::list(config, json),
            ModelCommand::Verify { names } => artefacts::verify(config, &names),
            ModelCommand::Prune { yes } => artefacts::prune(config, yes),
            ModelCommand::Import { path } => Box::pin(artefacts::import(config, &path)).await,
            ModelCommand::Quantize(quantize) => quantize.run().map(|()| DONE),
            #[cfg(feature = "gguf")]
            ModelCommand::Prepare(prepare) => Box::pin(prepare.run()).await,
            ModelCommand::Convert(convert) => convert.run().map(|()| DONE),
        }
    }
}

impl Quantize {
    #[cfg(feature = "gguf")]
    fn run(self) -> anyhow::Result<()> {
        crate::engines::gguf::quantize::quantize(&self.from, &self.to, self.weights)?;
        print_line!("{}", self.to.display());
        Ok(())
    }

    #[cfg(not(feature = "gguf"))]
    fn run(self) -> anyhow::Result<()> {
        let _ = (self.from, self.to);
        Err(anyhow::anyhow!("model quantize: this build has no GGUF engine"))
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
        Err(anyhow::anyhow!("model convert: this build has no ONNX engine"))
    }
}
