//! The checks of an update before it is tried: envelope, configuration, and what the device can load.

use std::sync::Arc;

use super::super::reload::Live;
use super::pull::Pull;
use super::stored::remote_of;
use super::{Fleet, now};
use crate::catalog::mistake::in_one_line;
use crate::config::source::{RemoteConfig, local_value};
use crate::fleet::check;
use crate::fleet::check::Verified;
use crate::fleet::digest::Digest;
use crate::fleet::envelope::UpdateConfig;
use crate::fleet::local::LocalConfig;
use crate::fleet::refusal::UpdateRefusal;
use crate::fleet::signature::Received;
use crate::fleet::trust::Trust;
use crate::limits::CONFIG_BYTES_MAX;
use crate::net::public;
use crate::store::slots::LiveConfig;
use crate::store::{files, trust_file};

/// An update whose envelope is accepted.
pub(super) struct Offered {
    pub(super) verified: Verified,
    pub(super) trust: Arc<Trust>,
    /// Its configuration, once it is here.
    pub(super) text: Option<String>,
}

impl Offered {
    /// Fetches the configuration, if it is not in the update.
    pub(super) async fn fetch(&mut self) -> Result<(), String> {
        if let UpdateConfig::Url(place) = &self.verified.envelope.config {
            let fetched = public::fetch(place, &self.trust.neighbours).await;
            self.text = Some(fetched.map_err(|error| format!("{error:#}"))?);
        }
        Ok(())
    }
}

impl Fleet {
    /// Checks signature and envelope of an `update.signed`.
    pub(super) fn accept(&mut self, bytes: &[u8], live: &Live) -> Result<Offered, UpdateRefusal> {
        let trust = trust_file::read(&self.trust_file).map_err(UpdateRefusal::NoPolicy)?;
        let trust = Arc::new(trust);
        self.machine.set_bounds(trust.trial);
        let config = live.local();
        let file = files::read(&config.path, CONFIG_BYTES_MAX).unwrap_or_default();
        let group = config.catalog.device.group.as_deref();
        let missing = || UpdateRefusal::WrongContent("the state is not there".to_owned());
        let slots = self.slots.as_ref().ok_or_else(missing)?;
        let memory = slots.memory(&config.device, group, now(), Digest::of(&file));
        let verified = check::check(&Received::of(bytes)?, &trust, &memory)?;
        let text = match &verified.envelope.config {
            UpdateConfig::Inline(text) => Some(text.clone()),
            UpdateConfig::Url(_) => None,
        };
        Ok(Offered { verified, trust, text })
    }

    /// Checks the meaning of an update's configuration, and that this device can load it.
    pub(super) async fn check(&self, offered: &Offered, live: &Live) -> Result<(), UpdateRefusal> {
        let Offered { verified, trust, text } = offered;
        let missing = || UpdateRefusal::WrongContent("there is no configuration".to_owned());
        let text = text.as_ref().ok_or_else(missing)?;
        let config = live.local();
        let unreadable = |why| UpdateRefusal::WrongContent(format!("mcp.json: {why}"));
        let file = local_value(config).map_err(unreadable)?;
        let running = self.slots.as_ref().and_then(|slots| slots.live().remote());
        let running = running.and_then(|slot| serde_json::from_str(&slot.config).ok());
        let running = running.unwrap_or_else(|| file.clone());
        let variables = crate::config::variables().unwrap_or_default();
        let local = LocalConfig {
            file: &file,
            catalog: &config.catalog,
            variables: &variables,
            running: &running,
        };
        check::meaning(verified, text, trust, local)?;
        let version = verified.envelope.version.into();
        let remote = RemoteConfig { version, text: text.clone(), trust: Arc::clone(trust) };
        check_programs(&remote).await.map_err(UpdateRefusal::WrongContent)?;
        live.check_remote(Some(&remote)).map(drop).map_err(UpdateRefusal::BadConfig)
    }

    /// The downloads of the models that the offered update uses; none if there are none.
    pub(super) fn models_of(&self, live: &Live) -> Result<Option<Pull>, String> {
        let missing = || "there is no configuration".to_owned();
        let Offered { verified, trust, text } = self.offered.as_ref().ok_or_else(missing)?;
        let version = verified.envelope.version.into();
        let text = text.clone().ok_or_else(missing)?;
        let remote = RemoteConfig { version, text, trust: Arc::clone(trust) };
        let checked =
            live.check_remote(Some(&remote)).map_err(|mistakes| in_one_line(&mistakes))?;
        Ok(Pull::begin(&checked.config))
    }

    /// The configuration before the last kept one, which can be loaded; none is the local file.
    pub(super) async fn before(&self, live: &Live) -> Result<Option<RemoteConfig>, String> {
        let slots = self.slots.as_ref().ok_or("the state is not there")?;
        let remote = match slots.before().map_err(|error| error.to_string())? {
            LiveConfig::Remote(slot) => {
                let trust = trust_file::read(&self.trust_file)
                    .map_err(|mistakes| in_one_line(&mistakes))?;
                Some(remote_of(&slot, &Arc::new(trust)))
            }
            LiveConfig::Local {} => None,
        };
        if let Some(remote) = &remote {
            check_programs(remote).await?;
        }
        live.check_remote(remote.as_ref()).map_err(|mistakes| in_one_line(&mistakes))?;
        Ok(remote)
    }
}

/// Checks the digests of the programs that a configuration names, on a thread.
async fn check_programs(remote: &RemoteConfig) -> Result<(), String> {
    let commands = check::commands_of(&remote.text, &remote.trust);
    let work = tokio::task::spawn_blocking(move || trust_file::check_programs(&commands));
    let checked = work.await.map_err(|error| error.to_string())?;
    checked.map_err(|error| error.to_string())
}
