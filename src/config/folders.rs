//! The folders of persistent state and of models, and how engines are started.

use std::path::{Path, PathBuf};

use super::{Config, SettingsReader};
use crate::catalog::catalog::Catalog;
use crate::catalog::server::{ENGINE_SANDBOX, ENGINES, EngineStart, PREFIXES};

impl Config {
    /// A folder on the disk that the service fills: that of its state, or what exists above it; the current one without
    /// state.
    pub fn written(&self) -> &Path {
        let state = self.state.as_deref().unwrap_or(Path::new("."));
        state.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."))
    }
}

impl SettingsReader<'_> {
    /// How engines are started.
    pub(super) fn engines(&mut self, state: Option<&Path>) -> EngineStart {
        let sandbox = self.get(ENGINE_SANDBOX);
        if !matches!(sandbox.as_deref(), None | Some("on" | "off")) {
            self.mistake(ENGINE_SANDBOX, "is neither on nor off");
        }
        let socket = self.get(ENGINES).map(PathBuf::from);
        EngineStart { socket, sandbox, prefixes: self.prefixes(state) }
    }

    /// The named folder of saved prefixes, else one in the state folder.
    fn prefixes(&self, state: Option<&Path>) -> Option<PathBuf> {
        if let Some(named) = self.get(PREFIXES) {
            return (named != "off").then(|| named.into());
        }
        state.map(|state| state.join("prefixes"))
    }

    /// The named folder, else that of systemd, else that of the user (XDG Base Directory
    /// Specification 0.8).
    pub(super) fn state(&self) -> Option<PathBuf> {
        if let Some(named) = self.get("PILOTLIGHT_STATE") {
            return (named != "off").then(|| named.into());
        }
        if let Some(given) = self.get("STATE_DIRECTORY") {
            return given.split(':').next().map(PathBuf::from);
        }
        let user = self.get("XDG_STATE_HOME").map(PathBuf::from);
        let user = user.or_else(|| Some(Path::new(&self.get("HOME")?).join(".local/state")))?;
        Some(user.join("pilotlight"))
    }

    /// The folder of the model store. An argument `--gguf NAME` or `--onnx NAME` of an engine that names a
    /// model of `pilotlight.models` becomes the model's path in that folder, unless there is a file of
    /// this name relative to the current directory.
    pub(super) fn models(
        &mut self,
        catalog: &mut Catalog,
        state: Option<&Path>,
    ) -> Option<PathBuf> {
        let named = self.get("PILOTLIGHT_MODELS").map(PathBuf::from);
        let folder = named.or_else(|| state.map(|state| state.join("models")));
        let Catalog { servers, models, .. } = catalog;
        for server in servers {
            let Some(argument) = server.model_argument() else { continue };
            let Some(model) = models.iter().find(|model| model.name == argument.value) else {
                continue;
            };
            if Path::new(&argument.value).exists() {
                continue;
            }
            let Some(folder) = &folder else {
                let message = format!(
                    "{} is a model of pilotlight.models, and there is no folder for it; set \
                     PILOTLIGHT_STATE or PILOTLIGHT_MODELS",
                    argument.value
                );
                self.mistake(&format!("mcpServers.{}.args", server.name), message);
                continue;
            };
            let path = folder.join(&model.name);
            server.set_model(&argument, &path.to_string_lossy(), &model.digest());
        }
        folder
    }
}
