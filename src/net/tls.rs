//! TLS clients: certificates and keys from files into one client configuration.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::catalog::file_text;

/// The PEM files of one TLS client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authorities that the server is verified by; the system's if none.
    pub ca: Option<String>,
    /// The client certificate chain, for mutual TLS.
    pub cert: Option<String>,
    /// The client's private key.
    pub key: Option<String>,
}

/// Installs ring as the cryptography provider of the process. Further calls have no effect.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Whether the system has certificate authorities.
pub fn has_authorities() -> bool {
    !rustls_native_certs::load_native_certs().certs.is_empty()
}

/// The configuration of a client that trusts `ca`, or the system's authorities, and presents the
/// client certificate if there is one.
///
/// # Errors
/// A message with the file that is missing or can't be used.
pub fn client(files: &TlsFiles) -> anyhow::Result<Arc<ClientConfig>> {
    install_provider();
    let builder = ClientConfig::builder();
    let builder = match &files.ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for cert in certificates(ca)? {
                roots.add(cert).with_context(|| {
                    format!("{ca} contains a certificate that is not a valid trust anchor")
                })?;
            }
            builder.with_root_certificates(roots)
        }
        None => {
            let loaded = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(loaded.certs);
            if roots.is_empty() {
                bail!(
                    "this system has no certificate authorities: install ca-certificates, or name a file of them as `ca`"
                );
            }
            builder.with_root_certificates(roots)
        }
    };
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_slice(&pem(key)?)
                .with_context(|| format!("{key} holds no private key"))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .with_context(|| format!("{cert} and {key} do not match"))?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) | (None, Some(_)) => bail!("mutual TLS needs both mqtt.cert and mqtt.key"),
    };
    Ok(Arc::new(config))
}

/// The content of a PEM file.
fn pem(path: &str) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(Path::new(path)).with_context(|| format!("{path} cannot be read"))?;
    Ok(file_text::without_marks(&bytes))
}

fn certificates(path: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem(path)?).collect();
    let all = all.with_context(|| format!("{path} holds a damaged certificate"))?;
    if all.is_empty() {
        bail!("{path} holds no certificate");
    }
    Ok(all)
}
