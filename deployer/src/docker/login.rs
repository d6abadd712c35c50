//! The login that an image is pulled with. The file is read anew each time, so that a login can be changed.

use std::path::Path;

use bollard::auth::DockerCredentials;
use runtime::logins::{Error, Logins};

/// The login for an image's registry; `None` when there is none.
pub(super) fn find(file: &Path, reference: &str) -> Result<Option<DockerCredentials>, Error> {
    let registry = registry(reference);
    let login = Logins::read(file)?.find(registry)?;
    Ok(login.map(|login| DockerCredentials {
        username: Some(login.username),
        password: Some(login.password),
        identitytoken: login.identity_token,
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    }))
}

/// Host and port of a reference, as Docker reads it.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_the_registry_of_the_image() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"auths": {"r.example:5000": {"username": "ci", "password": "a"}, "https://index.docker.io/v1/": {"username": "me", "password": "b"}}}"#;
        std::fs::write(file.path(), text).unwrap();
        let user = |reference: &str| find(file.path(), reference).unwrap().and_then(|login| login.username);
        assert_eq!(user("r.example:5000/kaai/e@sha256:00").as_deref(), Some("ci"));
        assert_eq!(user("library/python").as_deref(), Some("me"));
        assert_eq!(user("r.example/kaai/e@sha256:00"), None);
    }
}
