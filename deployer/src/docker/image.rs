//! The image of an environment: fetched if it is not there, and asked for its PATH.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::models::ImageInspect;
use proto::failure::{Failure, Stage};
use runtime::backoff::Backoff;

use super::{
    api::{Api, Error},
    login,
};
use crate::host::engine::Environment;

/// How often a registry that is away is tried again.
const ATTEMPTS: u32 = 3;
/// Where programs are in an image that does not say it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the image of an environment, or fetches it.
///
/// # Errors
///
/// Fails in words for the user.
pub(super) async fn environment(
    api: &Api,
    reference: &str,
    interpreter: &str,
    login: Option<&Path>,
) -> Result<Environment, Failure> {
    let inspect = async || api.image(reference).await.map_err(|error| cannot_have(reference, &error));
    let image = match inspect().await? {
        Some(image) => image,
        None => {
            pull(api, reference, login).await?;
            inspect().await?.ok_or_else(|| gone(reference))?
        }
    };
    Ok(Environment { interpreter: PathBuf::from(interpreter), path: path(&image, interpreter), folder: None })
}

async fn pull(api: &Api, reference: &str, login: Option<&Path>) -> Result<(), Failure> {
    if !reference.contains(['/', '@']) && (reference.starts_with("sha256:") || !reference.contains(':')) {
        // The name of an image of this host, which no registry knows.
        return Err(gone(reference));
    }
    let login = login.map(|file| login::find(file, reference)).transpose().map_err(|error| {
        let remedy = "mend the file that --registry-login names, then deploy again";
        Failure::platform(Stage::Starting, error.to_string(), remedy)
    })?;
    let login = login.flatten();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
    let mut attempt = 1;
    loop {
        let error = match api.pull(reference, login.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if attempt == ATTEMPTS || reason(&error) != Reason::Other {
            return Err(cannot_have(reference, &error));
        }
        tracing::warn!(%error, attempt, reference, "trying again");
        attempt += 1;
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Why an image cannot be had.
#[derive(Debug, PartialEq, Eq)]
enum Reason {
    Login,
    Missing,
    Full,
    Other,
}

/// Read from the engine's words: it has no codes for it.
fn reason(error: &Error) -> Reason {
    let text = error.to_string().to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["unauthorized", "denied", "authentication required", "no basic auth"]) {
        Reason::Login
    } else if says(&["no space left"]) {
        Reason::Full
    } else if matches!(error, Error::Missing(_)) || says(&["not found", "manifest unknown", "name unknown"]) {
        Reason::Missing
    } else {
        Reason::Other
    }
}

fn cannot_have(reference: &str, error: &Error) -> Failure {
    let remedy = match reason(error) {
        Reason::Login => "give the deployer a login for that registry with --registry-login, then deploy again",
        Reason::Missing => "deploy again, which builds it anew",
        Reason::Full => "free some space, then deploy again",
        Reason::Other => "look at the registry and at the Docker engine, then deploy again",
    };
    Failure::platform(Stage::Starting, format!("the image {reference} cannot be had: {error}"), remedy)
}

fn gone(reference: &str) -> Failure {
    let cause = format!("the image {reference} is gone");
    Failure::platform(Stage::Starting, cause, "deploy again, which builds it anew")
}

/// What `PATH` is to be: the interpreter's neighbours first, then what the image says.
fn path(image: &ImageInspect, interpreter: &str) -> String {
    let variables = image.config.iter().flat_map(|config| config.env.iter().flatten());
    let own = variables.filter_map(|variable| variable.strip_prefix("PATH=")).next_back().unwrap_or(PATH);
    match Path::new(interpreter).parent().filter(|folder| folder.is_absolute()) {
        Some(folder) if !own.split(':').any(|part| Path::new(part) == folder) => format!("{}:{own}", folder.display()),
        _ => own.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ImageConfig;

    use super::*;

    #[test]
    fn an_interpreters_neighbours_are_found_first_and_nothing_of_the_image_is_lost() {
        let image = |env: Option<&str>| ImageInspect {
            config: Some(ImageConfig { env: env.map(|env| vec![env.to_owned()]), ..ImageConfig::default() }),
            ..ImageInspect::default()
        };
        assert_eq!(path(&image(Some("PATH=/opt/conda/bin:/bin")), "python"), "/opt/conda/bin:/bin");
        assert_eq!(path(&image(Some("PATH=/e/bin:/bin")), "/e/bin/python"), "/e/bin:/bin");
        assert_eq!(path(&image(Some("PATH=/bin")), "/e/bin/python"), "/e/bin:/bin");
        assert_eq!(path(&image(Some("LANG=C")), "/e/bin/python"), format!("/e/bin:{PATH}"));
        assert_eq!(path(&image(None), "python3"), PATH);
    }

    #[test]
    fn why_an_image_cannot_be_had_is_read_from_the_engines_words() {
        for (text, wanted) in [
            ("Head \"https://r/v2/x\": unauthorized: authentication required", Reason::Login),
            ("pull access denied for x, repository does not exist or may require 'docker login'", Reason::Login),
            ("manifest for r/x@sha256:00 not found: manifest unknown: manifest unknown", Reason::Missing),
            ("write /var/lib/docker/tmp/x: no space left on device", Reason::Full),
            ("dial tcp 127.0.0.1:1: connect: connection refused", Reason::Other),
        ] {
            assert_eq!(reason(&Error::Refused(text.to_owned())), wanted, "{text}");
        }
    }
}
