//! The reader of `pilotlight.models`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::addresses::AddressRule;
use super::mistake::Scope;
use super::model::{
    ModelEntry, ModelFileEntry, ModelKind, ModelSource, folder_digest, is_graph, is_model_name,
    is_model_path,
};
use super::read_provider::is_loopback;
use super::secret::Secret;
use super::shape;
use crate::limits::models::{
    MODEL_BOARDS_MAX, MODEL_BYTES_MAX, MODEL_FILES_MAX, MODEL_LEVELS_MAX, MODEL_NAME_BYTES_MAX,
    MODEL_TEXT_BYTES_MAX, MODELS_MAX,
};

/// An entry of `pilotlight.models`: a GGUF file, or with `files` a folder for ONNX Runtime.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Model", extend("required" = ["licence"], "anyOf" = kinds()))]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    /// The origin: an `https://` URL, `file:PATH`, or a path that begins with `/` or `./`. Of a folder: what
    /// its files are below.
    #[schemars(length(min = 1, max = MODEL_TEXT_BYTES_MAX), regex(pattern = SOURCE_PATTERN))]
    source: Option<String>,
    /// The SHA-256, as `sha256sum` prints it.
    #[schemars(regex(pattern = SHA256_PATTERN))]
    sha256: Option<String>,
    /// The exact length of the file.
    #[schemars(range(min = 1, max = MODEL_BYTES_MAX))]
    bytes: Option<u64>,
    /// The licence, such as `apache-2.0`.
    #[schemars(with = "String", length(min = 1, max = MODEL_TEXT_BYTES_MAX))]
    licence: Option<String>,
    /// Patterns of the boards that the model is for, by architecture or by the names of the board; `*` stands
    /// for any characters.
    #[schemars(length(min = 1, max = MODEL_BOARDS_MAX))]
    boards: Option<Vec<String>>,
    /// The files of a folder for ONNX Runtime.
    #[schemars(length(min = 1, max = MODEL_FILES_MAX))]
    files: Option<Vec<RawModelFile>>,
    /// A PEM file with the certificate authorities of its sources, in the place of the system's.
    ca: Option<String>,
}

/// A file of a model folder.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ModelFile")]
#[serde(deny_unknown_fields)]
pub(super) struct RawModelFile {
    /// The path in the folder.
    #[schemars(length(min = 1))]
    path: String,
    /// The SHA-256, as `sha256sum` prints it.
    #[schemars(regex(pattern = SHA256_PATTERN))]
    sha256: String,
    /// The exact length.
    #[schemars(range(min = 1, max = MODEL_BYTES_MAX))]
    bytes: u64,
    /// The origin, if it is not below that of the folder.
    #[schemars(regex(pattern = SOURCE_PATTERN))]
    source: Option<String>,
}

const SHA256_PATTERN: &str = "^[0-9a-f]{64}$";
const SOURCE_PATTERN: &str = "^(https?://.+|file:.+|/.*|\\.\\.?/.*)$";

/// A model is a file, or it has files.
fn kinds() -> Value {
    let file = json!({"required": ["source", "sha256", "bytes"]});
    json!([file, {"required": ["files"]}])
}

/// The folder of prepacked weights, which ONNX Runtime writes into a model folder.
const RESERVED: &str = "prepared-";

const SHA256: &str = "must be 64 digits 0-9a-f, as sha256sum prints them";
const SOURCE: &str = "must be an https:// URL, http:// of a loopback address, file:PATH, or a path that \
                      begins with / or ./";

/// The models in the order of their names.
pub(super) fn read(entries: Vec<(String, Value)>, scope: &mut Scope<'_>) -> Vec<ModelEntry> {
    if entries.len() > MODELS_MAX {
        scope.add(format!("has {} entries, at most {MODELS_MAX}", entries.len()));
    }
    let entries: BTreeMap<String, Value> = entries.into_iter().collect();
    let mut models = Vec::new();
    for (name, mut value) in entries {
        // null is as good as absent
        if let Value::Object(members) = &mut value {
            members.retain(|_, member| !member.is_null());
        }
        let mut scope = scope.at(&name);
        if !is_model_name(&name) {
            scope.add(format!(
                "the name is that of a file or folder: 1 to {MODEL_NAME_BYTES_MAX} letters, digits and \
                 . _ + -, beginning with a letter or digit, without .part at its end"
            ));
        }
        let is_folder = value.get("files").is_some();
        let required: &[&str] =
            if is_folder { &["licence"] } else { &["source", "sha256", "bytes", "licence"] };
        shape::require(&value, required, &mut scope);
        let Some(raw) = shape::read::<RawModel>(value, &mut scope) else { continue };
        models.extend(raw.check(name, &mut scope));
    }
    models
}

impl RawModel {
    fn check(self, name: String, scope: &mut Scope<'_>) -> Option<ModelEntry> {
        let licence = self.licence?;
        check_text(&licence, &mut scope.at("licence"));
        let boards = self.boards;
        if let Some(boards) = &boards {
            check_boards(boards, &mut scope.at("boards"));
        }
        let base = match &self.source {
            Some(text) => source(text, &mut scope.at("source")),
            None => None,
        };
        let (kind, files) = match self.files {
            None => {
                let (sha256, bytes) = (self.sha256?, self.bytes?);
                check_digest(&sha256, &mut scope.at("sha256"));
                check_bytes(bytes, &mut scope.at("bytes"));
                let (path, source, addresses) = (name.clone(), base?, AddressRule::Any);
                let file = ModelFileEntry { path, source, addresses, sha256, bytes };
                (ModelKind::Gguf, vec![file])
            }
            Some(raw) => {
                let files = files(raw, base.as_ref(), &mut scope.at("files"));
                let total = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
                if self.bytes.is_some_and(|bytes| bytes != total) {
                    let message = format!("is not the sum of files, {total}; it may be left out");
                    scope.at("bytes").add(message);
                }
                let digest = folder_digest(&files);
                if self.sha256.is_some_and(|stated| stated != digest) {
                    scope
                        .at("sha256")
                        .add(format!("is not the digest of files, {digest}; it may be left out"));
                }
                (ModelKind::OnnxFolder, files)
            }
        };
        let (boards, ca) = (boards.unwrap_or_default(), self.ca);
        Some(ModelEntry { name, kind, files, licence, boards, ca })
    }
}

/// The files of a folder in the order of their paths.
fn files(
    raw: Vec<RawModelFile>,
    base: Option<&ModelSource>,
    scope: &mut Scope<'_>,
) -> Vec<ModelFileEntry> {
    if raw.is_empty() || raw.len() > MODEL_FILES_MAX {
        scope.add(format!("has {} entries, must have 1 to {MODEL_FILES_MAX}", raw.len()));
    }
    if !raw.iter().any(|file| is_graph(&file.path)) {
        scope.add("has no .onnx file: a model with files is a folder for ONNX Runtime");
    }
    let mut found: Vec<ModelFileEntry> = Vec::new();
    for (n, file) in raw.into_iter().enumerate() {
        let mut scope = scope.item(n);
        let RawModelFile { path, sha256, bytes, source: own } = file;
        if !is_model_path(&path) || path.starts_with(RESERVED) {
            scope.at("path").add(format!(
                "{path:?} must be a path in the folder: 1 to {MODEL_LEVELS_MAX} levels of letters, digits \
                 and . _ + -, each beginning with a letter or digit, and not {RESERVED}"
            ));
        }
        let is_below = |one: &str, other: &str| {
            other.strip_prefix(one).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let other = found.iter().find(|f| is_below(&f.path, &path) || is_below(&path, &f.path));
        if let Some(other) = other {
            scope.at("path").add(format!("{path:?} and {:?} can't both be files", other.path));
        }
        check_digest(&sha256, &mut scope.at("sha256"));
        check_bytes(bytes, &mut scope.at("bytes"));
        let source = match (own, base) {
            (Some(own), _) => source(&own, &mut scope.at("source")),
            (None, Some(base)) => below(base, &path, &mut scope),
            (None, None) => {
                scope.add("has no source: state one here, or one of the folder");
                None
            }
        };
        if let Some(source) = source {
            let addresses = AddressRule::Any;
            found.push(ModelFileEntry { path, source, addresses, sha256, bytes });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// The source of a file of a folder.
fn below(base: &ModelSource, path: &str, scope: &mut Scope<'_>) -> Option<ModelSource> {
    match base {
        ModelSource::Url(Secret(url)) if url.contains(['?', '#']) => {
            scope.add("has no source, and that of the folder has a query; state one for each file");
            None
        }
        ModelSource::Url(Secret(url)) => {
            Some(ModelSource::Url(Secret(format!("{}/{path}", url.trim_end_matches('/')))))
        }
        ModelSource::File(folder) => {
            Some(ModelSource::File(format!("{}/{path}", folder.trim_end_matches('/'))))
        }
    }
}

/// The source that a text names.
fn source(text: &str, scope: &mut Scope<'_>) -> Option<ModelSource> {
    if text.len() > MODEL_TEXT_BYTES_MAX || text.contains(char::is_control) {
        scope.add(format!(
            "must be at most {MODEL_TEXT_BYTES_MAX} bytes without control characters"
        ));
        return None;
    }
    if text.starts_with('/') || text.starts_with("./") || text.starts_with("../") {
        return Some(ModelSource::File(text.to_owned()));
    }
    if let Some(path) = text.strip_prefix("file:") {
        // `file:///a` and `file:/a` are the same (RFC 8089)
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            scope.add(SOURCE);
            return None;
        }
        return Some(ModelSource::File(path.to_owned()));
    }
    let uri: Option<http::Uri> = text.parse().ok();
    let uri = uri.filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    let is_url = uri.is_some_and(|uri| match uri.scheme_str() {
        Some("https") => true,
        Some("http") => is_loopback(&uri),
        Some(_) | None => false,
    });
    if !is_url {
        scope.add(SOURCE);
        return None;
    }
    Some(ModelSource::Url(Secret(text.to_owned())))
}

fn check_digest(sha256: &str, scope: &mut Scope<'_>) {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if sha256.len() != 64 || !sha256.bytes().all(is_digit) {
        scope.add(SHA256);
    }
}

fn check_bytes(bytes: u64, scope: &mut Scope<'_>) {
    if !(1..=MODEL_BYTES_MAX).contains(&bytes) {
        scope.add(format!("{bytes} must be the exact length of the file, 1 to {MODEL_BYTES_MAX}"));
    }
}

fn check_text(text: &str, scope: &mut Scope<'_>) {
    if text.trim().is_empty()
        || text.len() > MODEL_TEXT_BYTES_MAX
        || text.contains(char::is_control)
    {
        scope.add(format!(
            "must be 1 to {MODEL_TEXT_BYTES_MAX} bytes of text without control characters"
        ));
    }
}

fn check_boards(boards: &[String], scope: &mut Scope<'_>) {
    if boards.is_empty() || boards.len() > MODEL_BOARDS_MAX {
        let count = boards.len();
        scope.add(format!(
            "has {count} entries, must have 1 to {MODEL_BOARDS_MAX}; leave it out for all boards"
        ));
    }
    for (n, pattern) in boards.iter().enumerate() {
        check_text(pattern, &mut scope.item(n));
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::super::mistake::Mistakes;
    use super::*;

    fn read_one(name: &str, value: Value) -> Result<ModelEntry, Vec<String>> {
        let mut mistakes = Mistakes::default();
        let models = read(vec![(name.to_owned(), value)], &mut mistakes.at("models"));
        let mistakes: Vec<String> = mistakes.into_vec().iter().map(ToString::to_string).collect();
        match models.into_iter().next() {
            Some(model) if mistakes.is_empty() => Ok(model),
            _ => Err(mistakes),
        }
    }

    fn gguf(key: &str, value: Value) -> Value {
        let mut model = json!({
            "source": "https://h.example/m.gguf", "sha256": "0a".repeat(32), "bytes": 5, "licence": "mit",
        });
        model[key] = value;
        model
    }

    fn folder(files: &Value) -> Value {
        json!({"source": "https://h.example/m/", "licence": "mit", "files": files})
    }

    fn file(path: &str) -> Value {
        json!({"path": path, "sha256": "0a".repeat(32), "bytes": 5})
    }

    #[test]
    fn a_file_and_a_folder_are_read() {
        let model = read_one("m.gguf", gguf("boards", json!(["aarch64"]))).unwrap();
        assert_eq!(
            (model.kind, model.bytes(), model.digest()),
            (ModelKind::Gguf, 5, "0a".repeat(32))
        );
        assert!(model.is_for(&["aarch64".to_owned()]) && !model.is_for(&["x86_64".to_owned()]));
        let mut own = file("a.json");
        own["source"] = json!("file:///mnt/a");
        let model = read_one("m", folder(&json!([file("x/model.onnx"), own]))).unwrap();
        let sources: Vec<_> = model.files.iter().map(|file| file.source.clone()).collect();
        let url = ModelSource::Url(Secret("https://h.example/m/x/model.onnx".to_owned()));
        assert_eq!(sources, [ModelSource::File("/mnt/a".to_owned()), url]);
        assert_eq!(model.bytes(), 10);
        // echo of: sha256sum ./a.json ./x/model.onnx | sha256sum
        let lines =
            ["a.json", "x/model.onnx"].map(|path| format!("{}  ./{path}\n", "0a".repeat(32)));
        let expected = format!("{:x}", sha2::Sha256::digest(lines.concat()));
        assert_eq!(model.digest(), expected);
        let mut stated = folder(&json!([file("x/model.onnx"), file("a.json")]));
        stated["sha256"] = json!(expected);
        stated["bytes"] = json!(10);
        read_one("m", stated).unwrap();
    }

    #[test]
    fn every_mistake_has_its_path() {
        for (key, value, expected) in [
            (
                "source",
                json!("http://h.example/m"),
                "models.m.gguf.source: must be an https:// URL",
            ),
            ("source", json!("ftp://h/m"), "models.m.gguf.source: must be"),
            ("source", json!("https:///m"), "models.m.gguf.source: must be"),
            ("source", json!("m.gguf"), "models.m.gguf.source: must be"),
            ("source", json!("https://h/a b"), "models.m.gguf.source: must be"),
            ("source", json!("file:"), "models.m.gguf.source: must be"),
            ("source", json!("https://h/\u{7}"), "models.m.gguf.source: must be"),
            ("sha256", json!("0A".repeat(32)), "models.m.gguf.sha256: must be 64 digits"),
            ("sha256", json!("sha256:0a"), "models.m.gguf.sha256: must be 64 digits"),
            ("sha256", json!(5), "models.m.gguf.sha256: invalid type"),
            ("bytes", json!(0), "models.m.gguf.bytes: 0 must be"),
            ("bytes", json!(-1), "models.m.gguf.bytes: invalid value"),
            ("bytes", json!(1_u64 << 60), "models.m.gguf.bytes: 1152921504606846976 must be"),
            ("bytes", json!(1.5), "models.m.gguf.bytes: invalid type"),
            ("licence", json!(" "), "models.m.gguf.licence: must be 1 to"),
            ("boards", json!([]), "models.m.gguf.boards: has 0 entries"),
            ("boards", json!(["a", ""]), "models.m.gguf.boards[1]: must be"),
            ("boards", json!("aarch64"), "models.m.gguf.boards: invalid type"),
            ("licens", json!("mit"), "models.m.gguf.licens: unknown field `licens`"),
            ("files", json!([]), "models.m.gguf.files: has 0 entries"),
        ] {
            let mistakes = read_one("m.gguf", gguf(key, value)).unwrap_err();
            assert!(mistakes[0].starts_with(expected), "{mistakes:?} is not {expected}");
        }
        for empty in
            [json!({}), json!({"source": null, "sha256": null, "bytes": null, "licence": null})]
        {
            let missing = read_one("m.gguf", empty).unwrap_err();
            assert_eq!(missing.len(), 4, "{missing:?}");
        }
        for name in ["../m", "a/b", "..", ".m", "m.part"] {
            let mistakes = read_one(name, gguf("bytes", json!(5))).unwrap_err();
            assert!(mistakes[0].contains("the name is that of a file"), "{mistakes:?}");
        }
        let onnx = || file("model.onnx");
        for (files, expected) in [
            (json!([file("a.json")]), "models.m.files: has no .onnx file"),
            (json!([onnx(), file("../a")]), "models.m.files[1].path: \"../a\" must be a path"),
            (json!([onnx(), file("/a")]), "models.m.files[1].path: \"/a\" must be a path"),
            (json!([onnx(), file("prepared-1/a")]), "models.m.files[1].path: "),
            (json!([onnx(), onnx()]), "models.m.files[1].path: \"model.onnx\" and \"model.onnx\""),
            (json!([onnx(), file("model.onnx/a")]), "models.m.files[1].path: "),
            (json!([onnx(), {"path": "a"}]), "models.m.files[1]: missing field `sha256`"),
        ] {
            let mistakes = read_one("m", folder(&files)).unwrap_err();
            assert!(mistakes[0].starts_with(expected), "{mistakes:?} is not {expected}");
        }
        let mut without = folder(&json!([onnx()]));
        without.as_object_mut().unwrap().remove("source");
        let mistakes = read_one("m", without).unwrap_err();
        assert!(mistakes[0].starts_with("models.m.files[0]: has no source"), "{mistakes:?}");
        for (key, value) in [("bytes", json!(6)), ("sha256", json!("0a".repeat(32)))] {
            let mut stated = folder(&json!([onnx()]));
            stated[key] = value;
            let mistakes = read_one("m", stated).unwrap_err();
            assert!(
                mistakes[0].starts_with(&format!("models.m.{key}: is not the ")),
                "{mistakes:?}"
            );
        }
        let mut query = folder(&json!([onnx()]));
        query["source"] = json!("https://h.example/m?x");
        assert!(read_one("m", query).unwrap_err()[0].contains("has a query"));
    }
}
