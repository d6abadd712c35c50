//! The logins that registries are spoken to with.

use std::{collections::BTreeMap, fmt, path::Path};

use oci_distribution::secrets::RegistryAuth;
use proto::packager::RegistryLogin;
use runtime::logins::{self, host_of};

/// Logins by host. They are never shown.
#[derive(Clone, Default)]
pub(crate) struct Logins(BTreeMap<String, RegistryAuth>);

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Logins {
    /// Reads a file in the form of Docker's `config.json`.
    ///
    /// # Errors
    ///
    /// Fails in words when a login in it cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Self, logins::Error> {
        let all = logins::Logins::read(path)?.all()?;
        // Azure's registries, which give tokens out, take them as passwords too.
        let login =
            |login: logins::Login| RegistryAuth::Basic(login.username, login.identity_token.unwrap_or(login.password));
        Ok(Self(all.into_iter().map(|(host, found)| (host, login(found))).collect()))
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

    /// Host, user and password of each.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.0.iter().filter_map(|(host, login)| match login {
            RegistryAuth::Basic(user, password) => Some((host.as_str(), user.as_str(), password.as_str())),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_login_is_added_where_the_place_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {"r.example.com": {"username": "kaai", "password": "hunter2"}}}"#).unwrap();
        let logins = Logins::read(&path).unwrap();
        assert!(!format!("{logins:?}").contains("hunter2"));
        let login = |host: &str| RegistryLogin { host: host.into(), username: "me".into(), password: "mine".into() };
        let own = RegistryAuth::Basic("kaai".to_owned(), "hunter2".to_owned());
        assert_eq!(logins.with(&login("r.example.com")).of("r.example.com"), own);
        let theirs = RegistryAuth::Basic("me".to_owned(), "mine".to_owned());
        assert_eq!(logins.with(&login("https://index.docker.io/v1/")).of("index.docker.io"), theirs);
        assert_eq!(logins.of("elsewhere"), RegistryAuth::Anonymous);
    }
}
