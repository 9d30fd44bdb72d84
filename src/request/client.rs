//! The client of a request: the application that it states, and the principal that it is accounted to.

/// The principal of all applications whose names nothing vouches for, together. No application can have
/// this name: it is the wildcard of a topic level.
pub const UNLISTED: &str = "+";

/// Applications of the interfaces that have no topic: no name in a topic is one of them.
pub const INTERFACES: [&str; 3] = ["cli", "http", "mcp"];

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Client {
    /// The application's name as the client states it, for topics, logs and the decision.
    pub app: String,
    /// To whom the request is accounted: spending caps, shares of engines, places in the queue, stored
    /// replies and the policy are its own. An application, or [`UNLISTED`].
    pub principal: String,
}

impl Client {
    /// A client whose name is certain: an interface of this process, the holder of a token or key, or a
    /// user of a broker that states or enforces the name.
    pub fn known(app: impl Into<String>) -> Client {
        let app = app.into();
        Client { principal: app.clone(), app }
    }

    /// Whether this is an interface of this process, and not an application of its own.
    pub fn is_interface(&self) -> bool {
        INTERFACES.contains(&self.principal.as_str())
    }

    /// A client whose name somebody vouches for, such as a broker or a key. The names of interfaces are no
    /// one's.
    pub fn vouched(app: impl Into<String>, name: &str) -> Client {
        let principal = if INTERFACES.contains(&name) { UNLISTED } else { name };
        Client { app: app.into(), principal: principal.to_owned() }
    }

    /// A client whose name nothing vouches for.
    pub fn unlisted(app: impl Into<String>) -> Client {
        Client { app: app.into(), principal: UNLISTED.to_owned() }
    }
}
