//! Bounds of models as artefacts: their entries, downloads and checks.

use std::time::Duration;

/// Most entries of `pilotlight.models`.
pub const MODELS_MAX: usize = 64;
/// Most files of a model folder; those of the tested models have up to 12.
pub const MODEL_FILES_MAX: usize = 256;
/// Deepest path of a file in a model folder: optimum's folders have two levels.
pub const MODEL_LEVELS_MAX: usize = 4;
/// Longest name of a model, and of one level of a path in its folder, in bytes: file systems accept 255,
/// and `.part.json` is appended.
pub const MODEL_NAME_BYTES_MAX: usize = 128;
/// Largest file of a model, in bytes: 1 TiB, more than any board's disk.
pub const MODEL_BYTES_MAX: u64 = 1 << 40;
/// Longest `source`, `licence` and pattern of `boards`, in bytes. Signed URLs of object stores have about 1 KB.
pub const MODEL_TEXT_BYTES_MAX: usize = 4096;
/// Most patterns of `boards` of one model.
pub const MODEL_BOARDS_MAX: usize = 32;

/// Downloads at a time, of all processes that share a model store: a flash card writes one stream about
/// as fast as several.
pub const DOWNLOADS_MAX: usize = 2;
/// Most redirects of one download. Model hubs have one or two to a content delivery network.
pub const DOWNLOAD_REDIRECTS_MAX: usize = 5;
/// Longest time for the head of a response, and the interval in which at least
/// [`DOWNLOAD_STALL_BYTES_MIN`] have to arrive.
pub const DOWNLOAD_STALL_MAX: Duration = Duration::from_secs(30);
/// See [`DOWNLOAD_STALL_MAX`]: 1 KiB a second. A GSM line has 1.2 KB/s.
pub const DOWNLOAD_STALL_BYTES_MIN: u64 = 30 * 1024;
/// Most attempts in a row that brought less than [`DOWNLOAD_PROGRESS_BYTES`].
pub const DOWNLOAD_FAILURES_MAX: u32 = 6;
/// Bytes after which failures are counted from zero again: a large file over a weak line is cut often.
pub const DOWNLOAD_PROGRESS_BYTES: u64 = 1024 * 1024;
/// Most attempts of one download, whatever they bring.
pub const DOWNLOAD_ATTEMPTS_MAX: u32 = 1000;
/// Most restarts of one download from its first byte.
pub const DOWNLOAD_RESTARTS_MAX: u32 = 2;
/// First and longest wait before another attempt; it doubles with each failure.
pub const DOWNLOAD_RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`DOWNLOAD_RETRY_MIN`].
pub const DOWNLOAD_RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest `Retry-After` that a download waits for; a longer one ends it, and a later one resumes.
pub const DOWNLOAD_RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Pieces of a download that wait for the disk: at most some hundred KiB each.
pub const DOWNLOAD_PIECES_MAX: usize = 8;
/// Bytes after which the free disk space is looked at again: other programs write too.
pub const DOWNLOAD_ROOM_EVERY_BYTES: u64 = 32 * 1024 * 1024;
/// Interval between two attempts to take a lock that another process holds, and between two looks at the
/// sensors and networks of a board that must not download.
pub const MODEL_LOCK_EVERY: Duration = Duration::from_millis(200);
/// See [`MODEL_LOCK_EVERY`].
pub const OBSTACLE_EVERY: Duration = Duration::from_secs(2);
/// Most patterns of metered network interfaces.
pub const METERED_MAX: usize = 32;
/// Longest name of a network interface, in bytes: `IFNAMSIZ` of Linux without the final zero.
pub const INTERFACE_BYTES_MAX: usize = 15;
/// Bytes that are read from a disk at once.
pub const MODEL_READ_BYTES: usize = 1024 * 1024;
/// Largest JSON file beside a model: a validator, a receipt, `genai_config.json`.
pub const MODEL_JSON_BYTES_MAX: u64 = 1024 * 1024;

/// Most bytes of a text of a model's file that stand in a message: four names of a path.
pub const MODEL_SHOWN_BYTES_MAX: usize = 512;

/// Deepest nesting of messages in an ONNX file: a subgraph of a subgraph takes four levels each.
pub const ONNX_DEPTH_MAX: u32 = 64;
/// Most fields of an ONNX file that are looked at: graphs of the tested models have about 100,000.
pub const ONNX_FIELDS_MAX: u64 = 32 * 1024 * 1024;

/// Deepest folder that `model import` looks into.
pub const IMPORT_DEPTH_MAX: usize = 6;
/// Most entries of folders that `model import` looks at.
pub const IMPORT_ENTRIES_MAX: usize = 100_000;
/// Largest configuration below `fleet/` that `model prune` looks at, in bytes, and their number.
pub const PRUNE_CONFIG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// See [`PRUNE_CONFIG_BYTES_MAX`].
pub const PRUNE_CONFIGS_MAX: usize = 64;

const _: () = assert!(DOWNLOAD_RETRY_MAX.as_secs() <= DOWNLOAD_RETRY_AFTER_MAX.as_secs());
const _: () = assert!(MODEL_NAME_BYTES_MAX + ".part.json.part".len() <= 255);
