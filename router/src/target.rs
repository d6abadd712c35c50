//! What a request's path means: which service, and which of its addresses.
//!
//! The paths are v1's. Whether there is such a service is not known here.

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// The router itself, `/`.
    Welcome,
    /// An address of a service.
    Service {
        /// The workspace.
        workspace: &'a str,
        /// The service.
        service: &'a str,
        /// Which of its addresses.
        part: Part,
    },
    /// Nothing that a router has.
    Nothing,
}

/// The addresses of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Whether it answers at all.
    Root,
    /// Predictions.
    Score,
    /// The description of its interface.
    Swagger,
}

/// The workspace whose services stand where v1 had them, directly under `/api/v1/service/`.
pub(crate) const DEFAULT_WORKSPACE: &str = "default";

/// Reads a path. Names hold no characters that would be percent-encoded, so an encoded one is simply not found.
pub(crate) fn parse(path: &str) -> Target<'_> {
    if path == "/" {
        return Target::Welcome;
    }
    in_service(path).unwrap_or(Target::Nothing)
}

fn in_service(path: &str) -> Option<Target<'_>> {
    let rest = path.strip_prefix("/api/v1/")?;
    let (workspace, rest) = match rest.strip_prefix("workspace/") {
        Some(rest) => rest.split_once('/')?,
        None => (DEFAULT_WORKSPACE, rest),
    };
    let rest = rest.strip_prefix("service/")?;
    let (service, part) = match rest.split_once('/') {
        None | Some((_, "")) => (rest.trim_end_matches('/'), Part::Root),
        Some((service, "score")) => (service, Part::Score),
        Some((service, "swagger.json")) => (service, Part::Swagger),
        Some(_) => return None,
    };
    (!service.is_empty() && !workspace.is_empty()).then_some(Target::Service { workspace, service, part })
}

impl Part {
    /// The path at the replica.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Root => "/",
            Self::Score => "/score",
            Self::Swagger => "/swagger.json",
        }
    }

    /// The methods it is asked with, for the `Allow` header.
    pub(crate) fn methods(self) -> &'static str {
        match self {
            Self::Score => "GET, POST, OPTIONS",
            Self::Root | Self::Swagger => "GET, OPTIONS",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service<'a>(workspace: &'a str, service: &'a str, part: Part) -> Target<'a> {
        Target::Service { workspace, service, part }
    }

    #[test]
    fn v1_paths_lead_to_services_of_the_default_workspace() {
        assert_eq!(parse("/api/v1/service/ridge/score"), service("default", "ridge", Part::Score));
        assert_eq!(parse("/api/v1/service/ridge/swagger.json"), service("default", "ridge", Part::Swagger));
        assert_eq!(parse("/api/v1/service/ridge"), service("default", "ridge", Part::Root));
        assert_eq!(parse("/api/v1/service/ridge/"), service("default", "ridge", Part::Root));
    }

    #[test]
    fn other_workspaces_are_named_in_the_path() {
        assert_eq!(parse("/api/v1/workspace/team-a/service/ridge/score"), service("team-a", "ridge", Part::Score));
        assert_eq!(parse("/api/v1/workspace/team-a/service/ridge"), service("team-a", "ridge", Part::Root));
    }

    #[test]
    fn anything_else_is_nothing() {
        assert_eq!(parse("/"), Target::Welcome);
        for path in [
            "",
            "*",
            "/score",
            "/api/v1/service",
            "/api/v1/service/",
            "/api/v1/service//score",
            "/api/v1/service/ridge/score/",
            "/api/v1/service/ridge/v2/score",
            "/api/v1/workspace/team-a/ridge/score",
            "/api/v1/workspace//service/ridge/score",
            "//api/v1/service/ridge/score",
        ] {
            assert_eq!(parse(path), Target::Nothing, "{path}");
        }
    }
}
