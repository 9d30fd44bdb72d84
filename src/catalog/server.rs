//! One model server of the catalog, and its endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::addresses::AddressRule;
use super::provider::Provider;
use super::public_key::ServicePublicKey;
use super::secret::Secret;
use crate::model::context::Locality;
use crate::money::Price;

/// One model server: an entry of `mcpServers` or of `pilotlight.providers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerEntry {
    /// The key of the entry.
    pub name: String,
    /// The address and the protocol.
    pub endpoint: Endpoint,
    /// The locality: on the device, on a peer, or in a cloud.
    pub locality: Locality,
    /// The longest pause within an answer after which the server counts as hung; none for the
    /// default of its kind.
    pub silence: Option<Duration>,
    /// An engine that is idle for so long is asked for a token, to find out whether it is stuck.
    pub idle_probe: Option<Duration>,
    /// Skills in addition to those that the server states itself.
    pub skills: Vec<String>,
    /// Servers that may answer a prompt that this server's rules or context length exclude.
    pub fallbacks: Vec<String>,
    /// The price of its tokens.
    pub price: Price,
    /// The digests that its tools must have, by tool: `sha256:` and 64 digits. Others are recorded at the
    /// first use.
    pub tools: BTreeMap<String, String>,
}

/// How engines of this program are started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStart {
    /// The socket at which the service manager starts an engine for each connection; none: engines are child
    /// processes.
    pub socket: Option<PathBuf>,
    /// The value of `PILOTLIGHT_ENGINE_SANDBOX`.
    pub sandbox: Option<String>,
    /// The folder in which engines keep the beginnings of prompts for their next start; none: they keep none.
    pub prefixes: Option<PathBuf>,
}

impl EngineStart {
    /// Variables for the environment of engines.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let sandbox = self.sandbox.iter().map(|value| (ENGINE_SANDBOX, value.clone()));
        let prefixes = self.prefixes.as_ref().map(|folder| folder.to_string_lossy().into_owned());
        let prefixes = (PREFIXES, prefixes.unwrap_or_else(|| "off".to_owned()));
        let all = sandbox.chain([prefixes]);
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The variable that switches the sandbox of engines off.
pub const ENGINE_SANDBOX: &str = "PILOTLIGHT_ENGINE_SANDBOX";
/// The variable that names the folder of saved prefixes, see [`EngineStart::prefixes`].
pub const PREFIXES: &str = "PILOTLIGHT_PREFIX_CACHE";
/// The variable that names the socket of engines, see [`EngineStart::socket`].
pub const ENGINES: &str = "PILOTLIGHT_ENGINES";

/// The address and the protocol of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A child process that speaks MCP on its standard input and output.
    Child {
        /// The program; `pilotlight` stands for the running binary.
        command: String,
        /// The arguments.
        args: Vec<String>,
        /// Environment variables in addition to the inherited ones.
        env: BTreeMap<String, String>,
        /// Variables that are not inherited, because they hold secrets.
        hidden: BTreeSet<String>,
    },
    /// MCP over streamable HTTP.
    Http {
        /// The URL of the MCP endpoint, in which a key may stand.
        url: Secret<String>,
        /// The headers of every request.
        headers: Secret<BTreeMap<String, String>>,
        /// Which addresses the server may have.
        addresses: AddressRule,
    },
    /// MCP over MQTT, by the service's own connection to the broker.
    Mqtt {
        /// The topic prefix of the called service.
        topic: String,
        /// The public key of the service. Without one, calls are in plain text.
        service_key: Option<ServicePublicKey>,
    },
    /// A cloud model, called in its provider's own protocol.
    Provider(Box<Provider>),
}

/// Whether an entry starts an engine of this program.
pub(super) fn is_engine(command: &str, args: &[String]) -> bool {
    command.rsplit('/').next() == Some("pilotlight")
        && args.first().is_some_and(|first| first == "engine")
}
