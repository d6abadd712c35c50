//! The keys of services: made, sealed to the deployer itself, opened again, and digested for the routers.
//!
//! It owns the deployer's own key pair. It knows neither records nor messages:
//! in the clear a key exists only between these functions and the answer to whoever may ask.

use std::{io, path::Path};

use proto::{
    deployer::KeyRing,
    id::Digest,
    packager::Sealed,
    query::{Keys, WhichKey},
};
use runtime::sealing::{self, KeyPair, seal};
use sha2::{Digest as _, Sha256};

/// How many letters and digits a generated key has.
const LENGTH: usize = 32;
const LETTERS_AND_DIGITS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// How long a key of the user's own may be, in bytes: it travels in a header.
const LONGEST: usize = 4096;

/// Keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They cannot be encrypted or decrypted.
    #[error("the keys cannot be used: {0}")]
    Sealing(#[from] sealing::Error),
    /// A key that cannot be sent in a header.
    #[error("a key must have 1 to 4096 visible characters without a space at either end")]
    Unusable,
    /// The system has no randomness to give.
    #[error("no randomness can be had: {0}")]
    Randomness(io::Error),
}

/// The deployer's own key pair.
pub struct Keyring(KeyPair);

impl Keyring {
    /// Opens the deployer's own key, from its file.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read or made, or holds something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self(KeyPair::open(path)?))
    }

    /// The public key that users encrypt their keys to.
    pub fn public_key(&self) -> String {
        self.0.public_key()
    }

    /// A pair of new keys.
    ///
    /// # Errors
    ///
    /// Fails when the system has no randomness to give.
    pub fn generate(&self) -> Result<KeyRing, Error> {
        self.ring(&Keys { primary: random()?, secondary: random()? })
    }

    /// What is kept of a pair of keys that came with a request; a secondary key that is empty is made.
    ///
    /// # Errors
    ///
    /// Fails when they were sealed to somebody else, or cannot be used.
    pub fn accept(&self, sealed: &Sealed) -> Result<KeyRing, Error> {
        let mut keys = self.reveal(sealed)?;
        if keys.secondary.is_empty() {
            keys.secondary = random()?;
        }
        check(&keys.primary)?;
        check(&keys.secondary)?;
        self.ring(&keys)
    }

    /// Opens sealed keys.
    ///
    /// # Errors
    ///
    /// Fails when they were sealed to somebody else.
    pub fn reveal(&self, sealed: &Sealed) -> Result<Keys, Error> {
        Ok(self.0.unseal(sealed)?)
    }

    /// Replaces one of two keys, by one of the user's own or a new one.
    ///
    /// # Errors
    ///
    /// Fails when either pair cannot be opened, or the new key cannot be used.
    pub fn replace(
        &self,
        current: Option<&Sealed>,
        which: WhichKey,
        brought: Option<&Sealed>,
    ) -> Result<(Keys, KeyRing), Error> {
        let mut keys = match current.map(|current| self.reveal(current)) {
            Some(Ok(keys)) => keys,
            // Keys that nobody can read are of no use to anybody: both become new.
            None | Some(Err(_)) => Keys { primary: random()?, secondary: random()? },
        };
        let brought = brought.map(|brought| self.reveal(brought)).transpose()?;
        let new = match (brought, which) {
            (Some(brought), WhichKey::Primary) => brought.primary,
            (Some(brought), WhichKey::Secondary) => brought.secondary,
            (None, _) => random()?,
        };
        check(&new)?;
        match which {
            WhichKey::Primary => keys.primary = new,
            WhichKey::Secondary => keys.secondary = new,
        }
        let ring = self.ring(&keys)?;
        Ok((keys, ring))
    }

    fn ring(&self, keys: &Keys) -> Result<KeyRing, Error> {
        let sealed = seal(keys, &self.public_key())?;
        Ok(KeyRing { sealed, digests: vec![digest(&keys.primary), digest(&keys.secondary)] })
    }
}

/// What a router compares a key with.
pub fn digest(key: &str) -> Digest {
    digest_of(key.as_bytes())
}

/// The SHA-256 of bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

fn check(key: &str) -> Result<(), Error> {
    let visible = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if key.is_empty() || key.len() > LONGEST || !visible || key.trim() != key { Err(Error::Unusable) } else { Ok(()) }
}

/// Letters and digits, all equally likely.
fn random() -> Result<String, Error> {
    let mut key = String::with_capacity(LENGTH);
    let mut bytes = [0; 64];
    while key.len() < LENGTH {
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::Randomness(error.into()))?;
        // The bytes past the largest multiple of 62 would make some letters likelier than others.
        let fair = bytes.iter().filter(|byte| usize::from(**byte) < 62 * 4);
        let letters = fair.map(|byte| char::from(LETTERS_AND_DIGITS[usize::from(*byte) % 62]));
        key.extend(letters.take(LENGTH - key.len()));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(folder: &Path) -> Keyring {
        Keyring::open(&folder.join("deployer.seed")).unwrap()
    }

    fn keys(primary: &str, secondary: &str) -> Keys {
        Keys { primary: primary.to_owned(), secondary: secondary.to_owned() }
    }

    #[test]
    fn generated_keys_are_32_letters_and_digits_and_never_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = keyring(folder.path());
        let ring = keyring.generate().unwrap();
        let keys = keyring.reveal(&ring.sealed).unwrap();
        for key in [&keys.primary, &keys.secondary] {
            assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{key}");
        }
        assert_ne!(keys.primary, keys.secondary);
        assert_eq!(ring.digests, [digest(&keys.primary), digest(&keys.secondary)]);
    }

    #[test]
    fn a_users_own_keys_are_accepted_and_a_missing_secondary_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = keyring(folder.path());
        let ring = keyring.accept(&seal(&keys("mine", ""), &keyring.public_key()).unwrap()).unwrap();
        let kept = keyring.reveal(&ring.sealed).unwrap();
        assert_eq!((kept.primary.as_str(), kept.secondary.len()), ("mine", 32));
        for bad in ["", " mine", "a\nb", "ключ"] {
            let refused = keyring.accept(&seal(&keys(bad, "fine"), &keyring.public_key()).unwrap());
            assert!(matches!(refused, Err(Error::Unusable)), "{bad:?}");
        }
    }

    #[test]
    fn keys_for_another_deployer_are_not_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = keyring(folder.path());
        let other = KeyPair::open(&folder.path().join("other.seed")).unwrap().public_key();
        let mut sealed = seal(&keys("a", "b"), &other).unwrap();
        let refused = keyring.accept(&sealed);
        assert!(matches!(refused, Err(Error::Sealing(sealing::Error::Recipient { .. }))));
        sealed.recipient = keyring.public_key();
        assert!(matches!(keyring.accept(&sealed), Err(Error::Sealing(sealing::Error::Unreadable(_)))));
    }

    #[test]
    fn one_key_is_replaced_and_the_other_stays() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = keyring(folder.path());
        let ring = keyring.accept(&seal(&keys("first", "second"), &keyring.public_key()).unwrap()).unwrap();
        let (now, ring) = keyring.replace(Some(&ring.sealed), WhichKey::Primary, None).unwrap();
        assert_eq!((now.primary.len(), now.secondary.as_str()), (32, "second"));
        let brought = seal(&keys("ignored", "third"), &keyring.public_key()).unwrap();
        let (now, _) = keyring.replace(Some(&ring.sealed), WhichKey::Secondary, Some(&brought)).unwrap();
        assert_eq!((now.primary.len(), now.secondary.as_str()), (32, "third"));
    }
}
