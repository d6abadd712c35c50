//! Encrypting the keys of a service to the deployer, so that nobody on the way can read them.

use nkeys::XKey;
use proto::{packager::SealedKeys, query::Keys};

/// The deployer's public key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the deployer's public key cannot be used: {0}")]
pub struct Error(String);

/// Encrypts keys to a public key (a NATS xkey), with a sender key that is used once.
///
/// # Errors
///
/// Fails when `recipient` is no public xkey.
pub fn seal(keys: &Keys, recipient: &str) -> Result<SealedKeys, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error(error.to_string());
    let to = XKey::from_public_key(recipient).map_err(|error| wrong(&error))?;
    let sender = XKey::new();
    let plain = serde_json::to_vec(keys).map_err(|error| wrong(&error))?;
    let sealed = sender.seal(&plain, &to).map_err(|error| wrong(&error))?;
    Ok(SealedKeys {
        recipient: recipient.to_owned(),
        sender: sender.public_key(),
        sealed: sealed.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_recipient_reads_the_keys() {
        let keys = Keys { primary: "first".into(), secondary: "second".into() };
        let deployer = XKey::new();
        let sealed = seal(&keys, &deployer.public_key()).unwrap();
        assert!(!serde_json::to_string(&sealed).unwrap().contains("first"));
        let cipher: Vec<_> = (0..sealed.sealed.len() / 2)
            .map(|n| u8::from_str_radix(&sealed.sealed[2 * n..2 * n + 2], 16).unwrap())
            .collect();
        let sender = XKey::from_public_key(&sealed.sender).unwrap();
        assert_eq!(serde_json::from_slice::<Keys>(&deployer.open(&cipher, &sender).unwrap()).unwrap(), keys);
        assert!(XKey::new().open(&cipher, &sender).is_err());
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let keys = Keys { primary: String::new(), secondary: String::new() };
        assert!(seal(&keys, "XNOTAKEY").is_err());
    }
}
