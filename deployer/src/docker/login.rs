//! Logins for registries, from a Docker `config.json`. Read anew each time, so that a login can be changed.

use std::{collections::BTreeMap, fs, io, path::Path};

use bollard::auth::DockerCredentials;
use serde::Deserialize;

/// A login cannot be read. No message holds any part of one.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the logins for registries cannot be read: {0}")]
    File(io::Error),
    #[error("the file of logins is no config.json of Docker: line {0} cannot be read")]
    Format(usize),
    #[error("the login for {0} cannot be read: its `auth` is not USER:PASSWORD in base64")]
    Login(String),
    #[error(
        "the file of logins leaves {0} to a credential helper, which kaai does not ask; write the login itself there"
    )]
    Helper(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: Option<String>,
}

/// The login for an image's registry; `None` when there is none.
pub(super) fn find(file: &Path, reference: &str) -> Result<Option<DockerCredentials>, Error> {
    let text = fs::read_to_string(file).map_err(Error::File)?;
    let file: File = serde_json::from_str(&text).map_err(|error| Error::Format(error.line()))?;
    let registry = registry(reference);
    let found = file.auths.into_iter().find(|(key, _)| host(key) == registry).map(|(_, entry)| entry);
    match found.map(|entry| entry.login(registry)).transpose()?.flatten() {
        None if file.creds_store.is_some() || file.cred_helpers.contains_key(registry) => {
            Err(Error::Helper(registry.to_owned()))
        }
        login => Ok(login),
    }
}

impl Entry {
    fn login(self, registry: &str) -> Result<Option<DockerCredentials>, Error> {
        let Self { auth, mut username, mut password, identitytoken } = self;
        if !auth.is_empty() {
            let wrong = || Error::Login(registry.to_owned());
            let bytes = data_encoding::BASE64.decode(auth.as_bytes()).map_err(|_| wrong())?;
            let text = String::from_utf8(bytes).map_err(|_| wrong())?;
            let (name, secret) = text.split_once(':').ok_or_else(wrong)?;
            (username, password) = (name.to_owned(), secret.trim_end_matches('\0').to_owned());
        }
        if username.is_empty() && identitytoken.is_none() {
            return Ok(None);
        }
        Ok(Some(DockerCredentials {
            username: Some(username),
            password: Some(password),
            identitytoken,
            serveraddress: Some(registry.to_owned()),
            ..DockerCredentials::default()
        }))
    }
}

/// Host and port of a reference, as Docker reads it.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

/// Host and port of a key in the file, which may be an address.
fn host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest);
    if host == "index.docker.io" { "docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(text: &str, reference: &str) -> Result<Option<(String, String)>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let found = find(file.path(), reference).map_err(|error| error.to_string())?;
        Ok(found.map(|login| (login.username.unwrap(), login.password.unwrap())))
    }

    #[test]
    fn a_login_is_found_by_its_registry() {
        // `ci:s3:cret` and `me:pw`.
        let file = r#"{"auths": {"r.example:5000": {"auth": "Y2k6czM6Y3JldA=="}, "https://index.docker.io/v1/": {"auth": "bWU6cHc="}, "plain": {"username": "a", "password": "b"}}}"#;
        let found = |name: &str, secret: &str| Ok(Some((name.to_owned(), secret.to_owned())));
        assert_eq!(login(file, "r.example:5000/kaai/e@sha256:00"), found("ci", "s3:cret"));
        assert_eq!(login(file, "library/python"), found("me", "pw"));
        assert_eq!(login(file, "r.example/kaai/e@sha256:00"), Ok(None));
    }

    #[test]
    fn what_cannot_be_read_is_said_and_no_part_of_a_login_is() {
        let broken = login(r#"{"auths": {"r.example": {"auth": "s3cret!"}}}"#, "r.example/x").unwrap_err();
        assert!(broken.contains("r.example") && !broken.contains("s3cret"), "{broken}");
        let broken = login("{\"auths\": \"s3cret\"}", "r.example/x").unwrap_err();
        assert!(broken.contains("line 1") && !broken.contains("s3cret"), "{broken}");
        let helper = login(r#"{"auths": {"r.example": {}}, "credsStore": "pass"}"#, "r.example/x").unwrap_err();
        assert!(helper.contains("credential helper"), "{helper}");
    }
}
