//! Verifies a model folder and opens its graph: what decoders and encoders have in common.

use super::OnnxOptions;
use super::files::FolderFiles;
use super::prepared;
use super::runtime::OnnxRuntime;
use super::session;
use super::session::Opened;
use crate::model::context;
use crate::model::context::Identification;
use crate::model::generate::Fault;
use crate::sandbox::memory::EngineBounds;

/// Verifies the files and opens the graph; also returns the digest of the weights.
///
/// # Errors
/// [`Fault::Unavailable`] that states what is wrong.
pub(super) fn open(
    files: &FolderFiles,
    runtime: &OnnxRuntime,
    options: &OnnxOptions,
    bounds: &EngineBounds,
) -> Result<(Opened, String), Fault> {
    if let Some(pinned) = &bounds.digest {
        files.check_pinned(pinned)?;
    }
    files.verify()?;
    let digest = files.digest()?;
    if options.providers.iter().any(|provider| provider.is_accelerator()) {
        // for the CPU, the weights are verified when they are prepacked
        files.verify_weights()?;
    }
    // the pinned digest does not cover prepacked weights
    let is_pinned = bounds.digest.is_some();
    let prepared = || if is_pinned { Ok(None) } else { prepared::graph(files, &digest, runtime) };
    let opened = session::open(runtime, &files.graph, prepared, options)?;
    Ok((opened, digest))
}

/// Bounds the memory of the process, if the model is computed by the CPU: drivers of a GPU map memory of
/// which the process uses a part.
pub(super) fn bound_memory(bounds: &EngineBounds, options: &OnnxOptions, needed: u64) {
    if !options.providers.iter().any(|provider| provider.is_accelerator()) {
        // weights are packed into three times their size
        bounds.memory.set(needed, 5);
    }
}

/// Describes the runtime, the execution provider and the memory.
pub(super) fn runtime_facts(
    files: &FolderFiles,
    options: &OnnxOptions,
    runtime: &OnnxRuntime,
    opened: &Opened,
    memory_bytes: u64,
) -> context::Runtime {
    context::Runtime {
        backend: "onnxruntime".to_owned(),
        version: runtime.version.clone(),
        quantization: files.origin.quantization.clone(),
        location: "device".to_owned(),
        threads: options.threads,
        accelerator: opened.accelerator.clone(),
        fallback: opened.fallback.clone(),
        slots: 1,
        memory_bytes,
        ..context::Runtime::default()
    }
}

/// Identifies the model by its folder.
pub(super) fn identity(
    files: &FolderFiles,
    options: &OnnxOptions,
    family: &str,
    digest: String,
) -> Identification {
    Identification {
        name: options.name.clone().unwrap_or_else(|| files.name()),
        family: family.to_owned(),
        version: files.origin.version.clone(),
        provider: files.origin.provider.clone(),
        digest: Some(digest),
        licence: files.origin.licence.clone(),
    }
}
