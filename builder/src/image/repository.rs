//! Where images lie in a registry.

use oci_distribution::Reference;
use proto::id::EnvironmentHash;

/// Where images lie: host and port of a registry, and a repository there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    pub(super) host: String,
    pub(super) name: String,
}

impl Repository {
    /// Reads `HOST[:PORT][/PREFIX]`; `/environments` is put behind the prefix.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let whole = format!("{}/environments", text.trim_end_matches('/'));
        let wrong = || {
            format!("{text:?} is no registry: give host, port and prefix, registry.example.com:5000/kaai for example")
        };
        let (host, name) = whole.split_once('/').ok_or_else(wrong)?;
        let named = host.contains(['.', ':']) || host == "localhost";
        let reference: Reference = whole.parse().map_err(|_| wrong())?;
        if !named || text.contains("://") || reference.repository() != name {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), name: name.to_owned() })
    }

    /// The image of an environment.
    pub(super) fn image(&self, environment: &EnvironmentHash) -> Reference {
        Reference::with_tag(self.host.clone(), self.name.clone(), environment.to_string())
    }

    /// Where the results of docker steps lie.
    pub(super) fn ground(&self, tag: &str) -> Reference {
        let name = format!("{}/steps", self.name.trim_end_matches("/environments"));
        let name = if self.name == "environments" { "steps".to_owned() } else { name };
        Reference::with_tag(self.host.clone(), name, tag.to_owned())
    }

    /// As a user names it.
    pub(super) fn shown(&self) -> String {
        format!("{}/{}", self.host, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_read_with_its_prefix() {
        let read = |text: &str| Repository::read(text).map(|repository| repository.shown());
        assert_eq!(read("127.0.0.1:5000").unwrap(), "127.0.0.1:5000/environments");
        assert_eq!(read("registry.example.com/team/kaai/").unwrap(), "registry.example.com/team/kaai/environments");
        assert_eq!(read("localhost/kaai").unwrap(), "localhost/kaai/environments");
        for wrong in ["", "kaai", "https://registry.example.com", "registry.example.com/UPPER", "a b.c/d"] {
            assert!(read(wrong).unwrap_err().contains("is no registry"), "{wrong}");
        }
    }
}
