//! The HTTP interface: its address, its tokens and the hosts and origins that may use it.

use std::net::SocketAddr;

use super::{Http, SettingsReader};
use crate::catalog::catalog::Catalog;
use crate::catalog::secret::Secret;
use crate::ingress::http::{AccessGuard, is_origin};

impl SettingsReader<'_> {
    pub(super) fn http(&mut self, catalog: &Catalog) -> Option<Http> {
        let part = &catalog.http;
        let (listen, path) =
            self.setting("PILOTLIGHT_HTTP", "pilotlight.http.listen", part.listen.clone());
        let listen = listen.unwrap_or_else(|| "127.0.0.1:8080".to_owned());
        if listen == "off" {
            return None;
        }
        let Ok(addr) = listen.parse::<SocketAddr>() else {
            self.mistake(path, format!("{listen:?} is neither an address with a port nor off"));
            return None;
        };
        let token = part.token.clone().map(|t| t.0);
        let (token, path) = self.setting("PILOTLIGHT_HTTP_TOKEN", "pilotlight.http.token", token);
        let token = self.secret(path, token);
        let apps = self.http_tokens(catalog);
        if token.is_none() && apps.is_empty() && !addr.ip().is_loopback() {
            let message = format!(
                "{addr} is reachable from other machines; a token is required: set \
                 PILOTLIGHT_HTTP_TOKEN"
            );
            self.mistake("pilotlight.http.token", message);
        }
        for (n, origin) in part.allowed_origins.iter().enumerate() {
            if !is_origin(origin) {
                let path = format!("pilotlight.http.allowed_origins[{n}]");
                let message = format!(
                    "{origin:?} is no origin; write it as a browser sends it: https://app.example or \
                     http://localhost:3000, without path, default port and *"
                );
                self.mistake(&path, message);
            }
        }
        let guard = AccessGuard {
            token: token.map(Secret),
            apps,
            hosts: part.allowed_hosts.clone(),
            origins: part.allowed_origins.clone(),
        };
        Some(Http { listen: addr, guard })
    }

    /// The bearer tokens of applications, each of which must be another one.
    fn http_tokens(&mut self, catalog: &Catalog) -> Vec<(String, Secret<String>)> {
        let mut tokens: Vec<(String, Secret<String>)> = Vec::new();
        for (app, policy) in &catalog.apps {
            let Some(token) = policy.http_token.clone() else { continue };
            let path = format!("pilotlight.policy.apps.{app}.http_token");
            let Some(token) = self.secret(&path, Some(token.0)) else { continue };
            if token.trim().is_empty() {
                self.mistake(&path, "is empty");
            }
            if tokens.iter().any(|(_, other)| other.0 == token) {
                self.mistake(&path, "is the token of another application too");
            }
            tokens.push((app.clone(), Secret(token)));
        }
        tokens
    }
}
