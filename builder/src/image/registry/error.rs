//! What a registry could not do, told by what can be done about it.

use std::io;

use oci_distribution::{
    Reference,
    errors::{OciDistributionError, OciEnvelope, OciErrorCode},
};
use proto::failure::{Failure, Stage};

/// A registry could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It has no such thing.
    #[error("{0} does not exist")]
    Missing(String),
    /// The login is missing, wrong, or may not do that.
    #[error("the registry {registry} refuses access to {what}")]
    Refused {
        /// Which one.
        registry: String,
        /// What was wanted.
        what: String,
    },
    /// It sends something else than what its digest says.
    #[error("{what} is damaged in its registry: {why}")]
    Damaged {
        /// What was fetched.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// It does not answer, or not now.
    #[error("the registry {registry} is not available: {why}")]
    Unavailable {
        /// Which one.
        registry: String,
        /// Why.
        why: String,
    },
    /// It answers with an error that does not pass.
    #[error("the registry {registry} cannot serve {what}: {why}")]
    Unable {
        /// Which one.
        registry: String,
        /// What was wanted.
        what: String,
        /// Why.
        why: String,
    },
    /// A file of this machine could not be read or written.
    #[error("{0}")]
    File(#[from] io::Error),
}

impl Error {
    pub(super) fn passes(&self) -> bool {
        // A damaged answer may have been cut on its way.
        matches!(self, Self::Unavailable { .. } | Self::Damaged { .. })
    }

    /// The failure of a deployment that needed it.
    pub(crate) fn into_failure(self) -> Failure {
        let remedy = match &self {
            Self::Missing(_) => "check the name; builder and registry have to know the same images",
            Self::Refused { .. } => {
                "give the builder a login that may do that (--registry-login), or the project one for its base image (baseImageRegistry)"
            }
            Self::Damaged { .. } => "push the image again, or have the registry's storage checked",
            Self::Unavailable { .. } => {
                "see whether the registry runs and can be reached from the builder, then deploy again"
            }
            Self::Unable { .. } => "look at the registry's own log",
            Self::File(_) => "free some space where the builder runs, then deploy again",
        };
        Failure::platform(Stage::Building, self.to_string(), remedy)
    }
}

/// An answer that is no use and stays so.
pub(super) fn unable(image: &Reference, why: String) -> Error {
    Error::Unable { registry: image.resolve_registry().to_owned(), what: image.whole(), why }
}

/// What an error of the client means.
pub(super) fn understood(image: &Reference, error: OciDistributionError) -> Error {
    let (registry, what) = (image.resolve_registry().to_owned(), image.whole());
    let unavailable = |why: String| Error::Unavailable { registry: registry.clone(), why };
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            Error::Refused { registry, what }
        }
        OciDistributionError::ImageManifestNotFoundError(_) => Error::Missing(what),
        OciDistributionError::RegistryError { envelope, .. } => told(image, envelope),
        OciDistributionError::ServerError { code: 404, .. } => Error::Missing(what),
        OciDistributionError::ServerError { code: 403, .. } => Error::Refused { registry, what },
        OciDistributionError::ServerError { code, .. } if code == 408 || code == 429 || code >= 500 => {
            unavailable(format!("it answers with status {code}"))
        }
        // The address of an upload has a state in it that is nobody's business.
        OciDistributionError::ServerError { code, message, .. } => match serde_json::from_str(&message) {
            Ok(envelope) => told(image, envelope),
            Err(_) => unable(image, format!("it answers with status {code}")),
        },
        OciDistributionError::DigestError(error) => Error::Damaged { what, why: error.to_string() },
        OciDistributionError::RequestError(error) if error.status().is_some_and(|status| status.as_u16() == 401) => {
            Error::Refused { registry, what }
        }
        OciDistributionError::RequestError(error) => unavailable(innermost(&error)),
        OciDistributionError::IoError(error) if error.raw_os_error().is_some() => Error::File(error),
        // A stream that was cut, or whose digest was another.
        OciDistributionError::IoError(error) => Error::Damaged { what, why: innermost(&error) },
        error => unable(image, error.to_string()),
    }
}

/// An error in the words of the protocol.
fn told(image: &Reference, envelope: OciEnvelope) -> Error {
    use OciErrorCode as Code;
    let (registry, what) = (image.resolve_registry().to_owned(), image.whole());
    let codes: Vec<_> = envelope.errors.iter().map(|error| &error.code).collect();
    let said = envelope.errors.iter().map(|error| error.message.as_str()).collect::<Vec<_>>().join("; ");
    let is = |wanted: &[OciErrorCode]| codes.iter().any(|code| wanted.contains(code));
    if is(&[Code::ManifestUnknown, Code::NameUnknown, Code::NotFound, Code::BlobUnknown, Code::ManifestBlobUnknown]) {
        Error::Missing(what)
    } else if is(&[Code::Unauthorized, Code::Denied]) {
        Error::Refused { registry, what }
    } else if is(&[Code::Toomanyrequests]) {
        Error::Unavailable { registry, why: "it asks for fewer requests".to_owned() }
    } else if is(&[Code::DigestInvalid, Code::SizeInvalid]) {
        Error::Damaged { what, why: said }
    } else {
        unable(image, said)
    }
}

/// The cause at the bottom: "Connection refused", not "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood_by_what_can_be_done_about_it() {
        let image: Reference = "r.example.com/kaai/environments:x".parse().unwrap();
        let server = |code| OciDistributionError::ServerError { code, url: String::new(), message: String::new() };
        assert!(understood(&image, server(429)).passes() && understood(&image, server(503)).passes());
        assert!(matches!(understood(&image, server(404)), Error::Missing(_)));
        assert!(matches!(understood(&image, server(403)), Error::Refused { .. }));
        assert!(matches!(understood(&image, server(400)), Error::Unable { .. }));
        let invalid = r#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match","detail":{}}]}"#;
        let pushed = OciDistributionError::ServerError { code: 400, url: "?_state=x".into(), message: invalid.into() };
        assert!(
            matches!(understood(&image, pushed), Error::Damaged { why, .. } if why == "provided digest did not match")
        );
        let full = io::Error::from_raw_os_error(28);
        assert!(matches!(understood(&image, full.into()), Error::File(_)));
        let refused = understood(&image, OciDistributionError::UnauthorizedError { url: String::new() }).into_failure();
        assert!(refused.cause.contains("r.example.com") && refused.remedy.contains("--registry-login"), "{refused:?}");
    }
}
