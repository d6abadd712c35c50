//! The keys of services: made, sealed to the deployer itself, opened again, and digested for the routers.
//!
//! It owns the deployer's own key pair (an xkey), whose seed never leaves its file. It knows neither records nor messages:
//! in the clear a key exists only between these functions and the answer to whoever may ask.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use nkeys::XKey;
use proto::{
    deployer::KeyRing,
    id::Digest,
    packager::SealedKeys,
    query::{Keys, WhichKey},
};
use sha2::{Digest as _, Sha256};

/// How many letters and digits a generated key has.
const LENGTH: usize = 32;
const LETTERS_AND_DIGITS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// How long a key of the user's own may be, in bytes: it travels in a header.
const LONGEST: usize = 4096;

/// Keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the deployer's own key cannot be read or written.
    #[error("cannot keep the deployer's own key in {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of the deployer's own key holds something else.
    #[error("{path} holds no key of a deployer; move it away and give all services new keys")]
    Seed {
        /// The file.
        path: PathBuf,
    },
    /// The keys were sealed to another deployer.
    #[error("the keys were encrypted to {recipient}, which is not this deployer's key")]
    Recipient {
        /// The public key they were sealed to.
        recipient: String,
    },
    /// What was sealed cannot be opened, or is no pair of keys.
    #[error("the keys cannot be decrypted: {0}")]
    Unreadable(String),
    /// A key that cannot be sent in a header.
    #[error("a key must have 1 to 4096 visible characters without a space at either end")]
    Unusable,
    /// The system has no randomness to give.
    #[error("no randomness can be had: {0}")]
    Randomness(io::Error),
}

/// The deployer's own key pair.
pub struct Keyring {
    own: XKey,
}

impl Keyring {
    /// Reads the seed from a file, or makes the key and the file, readable by its owner alone.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read or made, or holds something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let seed = match std::fs::read_to_string(path) {
            Ok(seed) => seed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        };
        let own = XKey::from_seed(seed.trim()).map_err(|_| Error::Seed { path: path.to_owned() })?;
        Ok(Self { own })
    }

    /// The public key that users encrypt their keys to.
    pub fn public_key(&self) -> String {
        self.own.public_key()
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
    pub fn accept(&self, sealed: &SealedKeys) -> Result<KeyRing, Error> {
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
    pub fn reveal(&self, sealed: &SealedKeys) -> Result<Keys, Error> {
        if sealed.recipient != self.public_key() {
            return Err(Error::Recipient { recipient: sealed.recipient.clone() });
        }
        let unreadable = |error: &dyn std::fmt::Display| Error::Unreadable(error.to_string());
        let sender = XKey::from_public_key(&sealed.sender).map_err(|error| unreadable(&error))?;
        let cipher = from_hex(&sealed.sealed).ok_or_else(|| unreadable(&"not hexadecimal digits"))?;
        let plain = self.own.open(&cipher, &sender).map_err(|error| unreadable(&error))?;
        // What the parser would quote is a key.
        serde_json::from_slice(&plain).map_err(|_| unreadable(&"not the JSON of two keys"))
    }

    /// Replaces one of two keys, by one of the user's own or a new one.
    ///
    /// # Errors
    ///
    /// Fails when either pair cannot be opened, or the new key cannot be used.
    pub fn replace(
        &self,
        current: Option<&SealedKeys>,
        which: WhichKey,
        brought: Option<&SealedKeys>,
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
        let plain = serde_json::to_vec(keys).map_err(|error| Error::Unreadable(error.to_string()))?;
        let sender = XKey::new();
        let cipher = sender.seal(&plain, &self.own).map_err(|error| Error::Unreadable(error.to_string()))?;
        let sealed = SealedKeys {
            recipient: self.public_key(),
            sender: sender.public_key(),
            sealed: cipher.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
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

/// Makes the seed's file; another deployer that made it meanwhile wins.
fn create(path: &Path) -> io::Result<String> {
    let seed = XKey::new().seed().map_err(io::Error::other)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().permissions(private()).tempfile_in(folder)?;
    file.write_all(seed.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(seed),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => std::fs::read_to_string(path),
        Err(error) => Err(error.error),
    }
}

fn private() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o600)
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

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keyring(folder: &Path) -> Keyring {
        Keyring::open(&folder.join("deployer.seed")).unwrap()
    }

    /// What a user's side does.
    fn seal(keys: &Keys, recipient: &str) -> SealedKeys {
        let sender = XKey::new();
        let to = XKey::from_public_key(recipient).unwrap();
        let cipher = sender.seal(&serde_json::to_vec(keys).unwrap(), &to).unwrap();
        SealedKeys {
            recipient: recipient.to_owned(),
            sender: sender.public_key(),
            sealed: cipher.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn keys(primary: &str, secondary: &str) -> Keys {
        Keys { primary: primary.to_owned(), secondary: secondary.to_owned() }
    }

    #[test]
    fn the_deployers_own_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = keyring(folder.path()).public_key();
        assert!(first.starts_with('X'));
        assert_eq!(keyring(folder.path()).public_key(), first);
        let mode = std::fs::metadata(folder.path().join("deployer.seed")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(folder.path().join("deployer.seed"), "nonsense").unwrap();
        assert!(matches!(Keyring::open(&folder.path().join("deployer.seed")), Err(Error::Seed { .. })));
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
        let ring = keyring.accept(&seal(&keys("mine", ""), &keyring.public_key())).unwrap();
        let kept = keyring.reveal(&ring.sealed).unwrap();
        assert_eq!((kept.primary.as_str(), kept.secondary.len()), ("mine", 32));
        for bad in ["", " mine", "a\nb", "ключ"] {
            let refused = keyring.accept(&seal(&keys(bad, "fine"), &keyring.public_key()));
            assert!(matches!(refused, Err(Error::Unusable)), "{bad:?}");
        }
    }

    #[test]
    fn keys_for_another_deployer_are_not_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = keyring(folder.path());
        let other = XKey::new().public_key();
        assert!(matches!(keyring.accept(&seal(&keys("a", "b"), &other)), Err(Error::Recipient { .. })));
        let mut sealed = seal(&keys("a", "b"), &other);
        sealed.recipient = keyring.public_key();
        assert!(matches!(keyring.accept(&sealed), Err(Error::Unreadable(_))));
    }

    #[test]
    fn one_key_is_replaced_and_the_other_stays() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = keyring(folder.path());
        let ring = keyring.accept(&seal(&keys("first", "second"), &keyring.public_key())).unwrap();
        let (now, ring) = keyring.replace(Some(&ring.sealed), WhichKey::Primary, None).unwrap();
        assert_eq!((now.primary.len(), now.secondary.as_str()), (32, "second"));
        let brought = seal(&keys("ignored", "third"), &keyring.public_key());
        let (now, _) = keyring.replace(Some(&ring.sealed), WhichKey::Secondary, Some(&brought)).unwrap();
        assert_eq!((now.primary.len(), now.secondary.as_str()), (32, "third"));
    }
}
