//! The glossary: every name of kaai as a type that can only hold a valid value (parse, don't validate).

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// A text that is not a valid name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
pub struct InvalidId {
    /// What kind of name was expected.
    pub kind: &'static str,
    /// The rule it breaks, for a person.
    pub rule: &'static str,
    /// The text as given, cut to 80 characters.
    pub text: String,
}

/// Declares a name: a checked string with the same form in Rust, JSON and the schema.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $rule:literal, $pattern:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind, rule: $rule, text: text.chars().take(80).collect() })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": concat!("A ", $kind, ": ", $rule) })
            }
        }
    };
}

name! {
    /// What a user deploys, reached at `/api/v1/service/<name>/score`; the rule is v1's.
    ServiceName, "service name", "3 to 32 lower-case letters, digits and hyphens, beginning with a letter and not ending with a hyphen",
    "^[a-z][-a-z0-9]{1,30}[a-z0-9]$",
    |s| (3..=32).contains(&s.len()) && s.starts_with(|c: char| c.is_ascii_lowercase()) && label(s)
}

name! {
    /// The tenant; one token of every subject, so that permissions can be granted on it.
    Workspace, "workspace", "1 to 63 lower-case letters, digits and hyphens, neither beginning nor ending with a hyphen",
    "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
    |s| (1..=63).contains(&s.len()) && label(s)
}

name! {
    /// The name of registered model files; the rule is v1's.
    ModelName, "model name", "1 to 255 letters, digits, hyphens, dots and underscores, beginning with a letter or digit",
    "^[a-zA-Z0-9][-a-zA-Z0-9._]{0,254}$",
    |s| (1..=255).contains(&s.len())
        && s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

name! {
    /// The SHA-256 of some content, as OCI writes it: `sha256:` and 64 hexadecimal digits.
    Digest, "digest", "sha256: followed by 64 lower-case hexadecimal digits",
    "^sha256:[0-9a-f]{64}$",
    |s| s.strip_prefix("sha256:").is_some_and(hex64)
}

name! {
    /// The identity of an environment: 64 hexadecimal digits of SHA-256 over its canonical form.
    EnvironmentHash, "environment hash", "64 lower-case hexadecimal digits",
    "^[0-9a-f]{64}$",
    hex64
}

name! {
    /// One running copy of a service.
    ReplicaId, "replica id", "1 to 63 lower-case letters, digits and hyphens, neither beginning nor ending with a hyphen",
    "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
    |s| (1..=63).contains(&s.len()) && label(s)
}

name! {
    /// One running instance of a component, a router for example.
    InstanceId, "instance id", "1 to 63 lower-case letters, digits and hyphens, neither beginning nor ending with a hyphen",
    "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
    |s| (1..=63).contains(&s.len()) && label(s)
}

fn label(s: &str) -> bool {
    !s.starts_with('-')
        && !s.ends_with('-')
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn hex64(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Default for Workspace {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl Digest {
    /// Builds a digest from the 32 bytes of a SHA-256.
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex(&bytes)))
    }

    /// The hexadecimal digits without the algorithm; a valid file name.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..8]
    }
}

impl EnvironmentHash {
    /// Builds the hash from the 32 bytes of a SHA-256.
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(hex(&bytes))
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number that grows with every change of a service: the stream sequence of the request that changed it.
///
/// The bus hands it out, so a redelivered request carries the same one, and an older one changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_service_name_keeps_v1_rule() {
        for good in ["abc", "ridge-diabetes", "a1b", "a--b", &"a".repeat(32)] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "ab", "Abc", "1abc", "-abc", "abc-", "a.b", "a b", "a*c", "a>c", "é-abc", &"a".repeat(33)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_invalid_name_says_the_rule() {
        let error = "Ridge".parse::<ServiceName>().unwrap_err();
        assert!(error.to_string().contains("\"Ridge\" is not a valid service name: 3 to 32"), "{error}");
        assert!(serde_json::from_str::<ServiceName>("\"Ridge\"").is_err());
    }

    proptest! {
        #[test]
        fn no_name_can_leave_its_place_in_a_subject(text in "\\PC*") {
            if let Ok(workspace) = text.parse::<Workspace>() {
                prop_assert!(!workspace.as_str().contains(['.', '*', '>', ' ', '/']));
            }
            if let Ok(name) = text.parse::<ServiceName>() {
                prop_assert!(!name.as_str().contains(['.', '*', '>', ' ', '/']));
            }
        }

        #[test]
        fn a_digest_is_read_as_written(bytes: [u8; 32]) {
            let digest = Digest::from_sha256(bytes);
            prop_assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        }
    }
}
