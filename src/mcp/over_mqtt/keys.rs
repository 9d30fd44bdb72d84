//! The key pairs of services and callers.

use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, Serializable};
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::catalog::public_key::{CallerPublicKey, KEY_BYTES, ServicePublicKey};
use crate::catalog::secret::Secret;

/// The private key of an X25519 pair.
pub(super) type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
/// The public key of an X25519 pair.
pub(super) type Public = <X25519HkdfSha256 as Kem>::PublicKey;

/// The key pair of a service, Ed25519. All workers of the service have it.
pub struct ServicePair(pub(super) Ed25519KeyPair);

impl ServicePair {
    /// The pair of this private key.
    pub fn new(secret: &Secret<[u8; KEY_BYTES]>) -> Option<ServicePair> {
        Ed25519KeyPair::from_seed_unchecked(&secret.0).ok().map(ServicePair)
    }

    /// The key that callers pin.
    pub fn public(&self) -> ServicePublicKey {
        let mut bytes = [0; KEY_BYTES];
        // both have 32 bytes
        bytes.iter_mut().zip(self.0.public_key().as_ref()).for_each(|(to, from)| *to = *from);
        ServicePublicKey(bytes)
    }
}

/// The key pair of a caller, X25519.
pub struct CallerPair {
    pub(super) private: Private,
    pub(super) public: Public,
}

impl CallerPair {
    /// The pair of this private key.
    pub fn new(secret: &Secret<[u8; KEY_BYTES]>) -> Option<CallerPair> {
        let private = Private::from_bytes(&secret.0).ok()?;
        let public = X25519HkdfSha256::sk_to_pk(&private);
        Some(CallerPair { private, public })
    }

    /// The key that workers know this caller by.
    pub fn public(&self) -> CallerPublicKey {
        CallerPublicKey(self.public.to_bytes().into())
    }
}
