//! Logins at registries, from a file as Docker keeps it.

use std::{collections::BTreeMap, fmt, path::Path};

use data_encoding::BASE64;
use oci_distribution::secrets::RegistryAuth;
use proto::packager::RegistryLogin;
use serde::Deserialize;

/// Logins by host. They are never shown.
#[derive(Clone, Default)]
pub(crate) struct Logins(BTreeMap<String, RegistryAuth>);

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Logins {
    /// Reads a file in the form of Docker's `config.json`: `{"auths": {"HOST": {"auth": "base64 of USER:PASSWORD"}}}`.
    ///
    /// # Errors
    ///
    /// Fails in words when it cannot be read, or holds a login in no form that is known; never with a part of one.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let wrong = |why: &str| format!("{}: {why}", path.display());
        let text = std::fs::read(path).map_err(|error| wrong(&error.to_string()))?;
        let place = |error: serde_json::Error| wrong(&format!("no JSON of logins (line {})", error.line()));
        let file: File = serde_json::from_slice(&text).map_err(place)?;
        let mut logins = BTreeMap::new();
        for (host, entry) in file.auths {
            let login = entry.login().ok_or_else(|| {
                wrong(&format!(
                    "the login at {host} has neither auth nor username and password; credential helpers are not asked"
                ))
            })?;
            logins.insert(host_of(&host).to_owned(), login);
        }
        Ok(Self(logins))
    }

    /// The same with another login, unless there is one at that host already: the place's own counts more.
    pub(crate) fn with(&self, login: &RegistryLogin) -> Self {
        let mut logins = self.clone();
        let RegistryLogin { host, username, password } = login;
        let own = logins.0.entry(host_of(host).to_owned());
        own.or_insert_with(|| RegistryAuth::Basic(username.clone(), password.clone()));
        logins
    }

    /// The login at a host; anonymous where there is none.
    pub(crate) fn of(&self, host: &str) -> RegistryAuth {
        self.0.get(host_of(host)).cloned().unwrap_or(RegistryAuth::Anonymous)
    }
}

impl Logins {
    /// Host, user and password of each.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.0.iter().filter_map(|(host, login)| match login {
            RegistryAuth::Basic(user, password) => Some((host.as_str(), user.as_str(), password.as_str())),
            _ => None,
        })
    }
}

impl Entry {
    fn login(self) -> Option<RegistryAuth> {
        if !self.username.is_empty() {
            return Some(RegistryAuth::Basic(self.username, self.password));
        }
        let text = String::from_utf8(BASE64.decode(self.auth.trim().as_bytes()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
    }
}

/// Docker writes its own hub as an address, `https://index.docker.io/v1/`.
fn host_of(written: &str) -> &str {
    let host = written.split_once("://").map_or(written, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    if host == "docker.io" || host == "registry-1.docker.io" { "index.docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Logins, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Logins::read(&path)
    }

    #[test]
    fn dockers_own_file_is_read() {
        let logins = read(
            r#"{"auths": {"r.example.com:5000": {"auth": "a2FhaTpodW50ZXIy"}, "https://index.docker.io/v1/": {"username": "u", "password": "p"}},
                "credsStore": "x"}"#,
        )
        .unwrap();
        assert_eq!(logins.of("r.example.com:5000"), RegistryAuth::Basic("kaai".to_owned(), "hunter2".to_owned()));
        assert_eq!(logins.of("index.docker.io"), RegistryAuth::Basic("u".to_owned(), "p".to_owned()));
        assert_eq!(logins.of("elsewhere"), RegistryAuth::Anonymous);
        assert!(!format!("{logins:?}").contains("hunter2"));
    }

    #[test]
    fn a_login_that_cannot_be_used_is_named_without_being_shown() {
        let error = read(r#"{"auths": {"r.example.com": {"auth": "hunter2%%"}}}"#).err().unwrap();
        assert!(error.contains("r.example.com") && !error.contains("hunter2"), "{error}");
        assert!(read("{").err().unwrap().contains("line 1"));
        assert!(Logins::read(Path::new("/nowhere/config.json")).err().unwrap().contains("/nowhere/config.json"));
    }
}
