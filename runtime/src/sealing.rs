//! Secrets on the way: encrypted to one component's public key (a NATS xkey), so that nobody between can read them.
//!
//! It owns the component's own key pair, whose seed never leaves its file. It does not know what is encrypted.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use nkeys::XKey;
use proto::packager::Sealed;
use serde::{Serialize, de::DeserializeOwned};

/// Something could not be encrypted or decrypted. No message holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the component's own key cannot be read or written.
    #[error("cannot keep the component's own key in {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of the component's own key holds something else.
    #[error("{path} holds no key; move it away, and a new one is made")]
    Seed {
        /// The file.
        path: PathBuf,
    },
    /// It was encrypted to somebody else.
    #[error("it was encrypted to {recipient}, which is not the key of who reads it; send it again")]
    Recipient {
        /// The public key that it was encrypted to.
        recipient: String,
    },
    /// It cannot be decrypted, or is not what was expected.
    #[error("it cannot be decrypted: {0}")]
    Unreadable(String),
    /// What should be a public key is none.
    #[error("the public key cannot be used: {0}")]
    PublicKey(String),
}

/// Encrypts a value to a public key, with a sender's key that is used once.
///
/// # Errors
///
/// Fails when `recipient` is no public xkey.
pub fn seal(value: &impl Serialize, recipient: &str) -> Result<Sealed, Error> {
    let to = XKey::from_public_key(recipient).map_err(|error| Error::PublicKey(error.to_string()))?;
    let unreadable = |error: &dyn std::fmt::Display| Error::Unreadable(error.to_string());
    let plain = serde_json::to_vec(value).map_err(|error| unreadable(&error))?;
    let sender = XKey::new();
    let cipher = sender.seal(&plain, &to).map_err(|error| unreadable(&error))?;
    Ok(Sealed {
        recipient: recipient.to_owned(),
        sender: sender.public_key(),
        sealed: cipher.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// A component's own key pair.
pub struct KeyPair(XKey);

impl KeyPair {
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
        XKey::from_seed(seed.trim()).map(Self).map_err(|_| Error::Seed { path: path.to_owned() })
    }

    /// The public key that others encrypt to.
    pub fn public_key(&self) -> String {
        self.0.public_key()
    }

    /// Decrypts what was encrypted to this key.
    ///
    /// # Errors
    ///
    /// Fails when it was encrypted to another key, or is something else than a `T`.
    pub fn unseal<T: DeserializeOwned>(&self, sealed: &Sealed) -> Result<T, Error> {
        if sealed.recipient != self.public_key() {
            return Err(Error::Recipient { recipient: sealed.recipient.clone() });
        }
        let unreadable = |error: &dyn std::fmt::Display| Error::Unreadable(error.to_string());
        let sender = XKey::from_public_key(&sealed.sender).map_err(|error| unreadable(&error))?;
        let cipher = from_hex(&sealed.sealed).ok_or_else(|| unreadable(&"not hexadecimal digits"))?;
        let plain = self.0.open(&cipher, &sender).map_err(|error| unreadable(&error))?;
        // What the parser would quote is secret.
        serde_json::from_slice(&plain).map_err(|_| unreadable(&"it holds something else"))
    }
}

/// Makes the seed's file; another instance that made it meanwhile wins.
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

    #[test]
    fn a_components_own_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.seed");
        let first = KeyPair::open(&path).unwrap().public_key();
        assert!(first.starts_with('X'));
        assert_eq!(KeyPair::open(&path).unwrap().public_key(), first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(KeyPair::open(&path), Err(Error::Seed { .. })));
    }

    #[test]
    fn only_the_recipient_reads_what_is_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let own = |name: &str| KeyPair::open(&folder.path().join(name)).unwrap();
        let (own, other) = (own("own"), own("other"));
        let sealed = seal(&"hidden-word", &own.public_key()).unwrap();
        assert!(!serde_json::to_string(&sealed).unwrap().contains("hidden-word"));
        assert_eq!(own.unseal::<String>(&sealed).unwrap(), "hidden-word");
        assert!(matches!(other.unseal::<String>(&sealed), Err(Error::Recipient { .. })));
        let renamed = Sealed { recipient: other.public_key(), ..sealed.clone() };
        assert!(matches!(other.unseal::<String>(&renamed), Err(Error::Unreadable(_))));
        let cut = Sealed { sealed: sealed.sealed[1..].to_owned(), ..sealed.clone() };
        assert!(matches!(own.unseal::<String>(&cut), Err(Error::Unreadable(_))));
        let error = own.unseal::<u32>(&sealed).unwrap_err().to_string();
        assert!(!error.contains("hidden-word"), "{error}");
        assert!(matches!(seal(&"x", "XNOTAKEY"), Err(Error::PublicKey(_))));
    }
}
