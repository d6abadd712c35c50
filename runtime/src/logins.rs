//! Logins at registries of images, from a file as Docker keeps it: `{"auths": {"HOST": {"auth": "base64 of USER:PASSWORD"}}}`.
//!
//! It knows the file. It asks no credential helper, and shows no part of a login.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use serde::Deserialize;

/// Logins cannot be read. No message holds any part of one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{file} is no config.json of Docker: line {line} cannot be read")]
    Format {
        /// The file.
        file: PathBuf,
        /// Where.
        line: usize,
    },
    /// A login is not written as it should be.
    #[error("the login for {host} in {file} cannot be read: its `auth` is not USER:PASSWORD in base64")]
    Login {
        /// The file.
        file: PathBuf,
        /// Whose.
        host: String,
    },
    /// A login is kept elsewhere.
    #[error("{file} leaves {host} to a credential helper, which kaai does not ask; write the login itself there")]
    Helper {
        /// The file.
        file: PathBuf,
        /// Whose.
        host: String,
    },
}

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user's name; empty where only a token is known.
    pub username: String,
    /// The password.
    pub password: String,
    /// The token that stands for both.
    pub identity_token: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

/// Logins by host.
#[derive(Debug, Clone)]
pub struct Logins {
    file: PathBuf,
    /// What cannot be read is an error to whoever needs it, and to nobody else.
    known: BTreeMap<String, Option<Login>>,
    /// Whether a helper has the logins that are not here.
    helper: bool,
    helped: Vec<String>,
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

impl Logins {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be read or has another form.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = path.to_owned();
        let text = std::fs::read(path).map_err(|source| Error::File { file: file.clone(), source })?;
        let read: Result<File, _> = serde_json::from_slice(&text);
        let read = read.map_err(|error| Error::Format { file: file.clone(), line: error.line() })?;
        let given = read.auths.into_iter().filter(|(_, entry)| !entry.is_empty());
        let known = given.map(|(host, entry)| (host_of(&host).to_owned(), entry.login())).collect();
        let helped = read.cred_helpers.keys().map(|host| host_of(host).to_owned()).collect();
        Ok(Self { file, known, helper: read.creds_store.is_some(), helped })
    }

    /// The login at a host, written as in an image's name or as Docker writes it; `None` when there is none.
    ///
    /// # Errors
    ///
    /// Fails when there is one that cannot be read, or that a helper has.
    pub fn find(&self, host: &str) -> Result<Option<Login>, Error> {
        let host = host_of(host);
        let file = || self.file.clone();
        match self.known.get(host) {
            Some(Some(login)) => Ok(Some(login.clone())),
            Some(None) => Err(Error::Login { file: file(), host: host.to_owned() }),
            None if self.helper || self.helped.iter().any(|helped| helped == host) => {
                Err(Error::Helper { file: file(), host: host.to_owned() })
            }
            None => Ok(None),
        }
    }

    /// All logins, by host.
    ///
    /// # Errors
    ///
    /// Fails when one of them cannot be read.
    pub fn all(&self) -> Result<BTreeMap<String, Login>, Error> {
        let all = self.known.keys().map(|host| Ok((host.clone(), self.find(host)?)));
        let all: Result<Vec<_>, Error> = all.collect();
        Ok(all?.into_iter().filter_map(|(host, login)| Some((host, login?))).collect())
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.auth.is_empty() && self.username.is_empty() && self.identitytoken.is_none()
    }

    fn login(self) -> Option<Login> {
        let Self { auth, mut username, mut password, identitytoken } = self;
        if !auth.is_empty() {
            let text = String::from_utf8(BASE64.decode(auth.trim().as_bytes()).ok()?).ok()?;
            let (name, secret) = text.split_once(':')?;
            (username, password) = (name.to_owned(), secret.trim_end_matches('\0').to_owned());
        }
        Some(Login { username, password, identity_token: identitytoken })
    }
}

/// Host and port of an address or name, Docker's own hub always as `docker.io`.
pub fn host_of(written: &str) -> &str {
    let host = written.split_once("://").map_or(written, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Logins, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Logins::read(file.path()).map_err(|error| error.to_string())
    }

    fn find(text: &str, host: &str) -> Result<Option<(String, String)>, String> {
        let found = read(text)?.find(host).map_err(|error| error.to_string())?;
        Ok(found.map(|login| (login.username, login.password)))
    }

    #[test]
    fn a_login_is_found_by_its_host() {
        // `ci:s3:cret` and `me:pw`.
        let text = r#"{"auths": {"r.example:5000": {"auth": "Y2k6czM6Y3JldA=="}, "https://index.docker.io/v1/": {"auth": "bWU6cHc="},
            "plain": {"username": "a", "password": "b"}, "empty": {}}}"#;
        let found = |name: &str, secret: &str| Ok(Some((name.to_owned(), secret.to_owned())));
        assert_eq!(find(text, "r.example:5000"), found("ci", "s3:cret"));
        assert_eq!(find(text, "docker.io"), found("me", "pw"));
        assert_eq!(find(text, "index.docker.io"), found("me", "pw"));
        assert_eq!((find(text, "r.example"), find(text, "empty")), (Ok(None), Ok(None)));
        let all = read(text).unwrap().all().unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["docker.io", "plain", "r.example:5000"]);
        assert!(!format!("{all:?}").contains("s3:cret"));
    }

    #[test]
    fn what_cannot_be_read_is_said_and_no_part_of_a_login_is() {
        let broken = r#"{"auths": {"r.example": {"auth": "s3cret!"}, "fine": {"username": "a", "password": "b"}}}"#;
        assert!(find(broken, "fine").unwrap().is_some(), "it is no trouble of others");
        for error in [find(broken, "r.example").unwrap_err(), read(broken).unwrap().all().unwrap_err().to_string()] {
            assert!(error.contains("r.example") && !error.contains("s3cret"), "{error}");
        }
        let other = read("{\"auths\": \"s3cret\"}").unwrap_err();
        assert!(other.contains("line 1") && !other.contains("s3cret"), "{other}");
        let helper = r#"{"auths": {"r.example": {}}, "credsStore": "pass"}"#;
        assert!(find(helper, "r.example").unwrap_err().contains("credential helper"));
        let helper = r#"{"credHelpers": {"r.example": "pass"}}"#;
        assert!(find(helper, "r.example").unwrap_err().contains("credential helper"));
        assert_eq!(find(helper, "other"), Ok(None));
        assert!(
            Logins::read(Path::new("/nowhere/config.json")).unwrap_err().to_string().contains("/nowhere/config.json")
        );
    }
}
