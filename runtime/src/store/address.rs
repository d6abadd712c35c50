//! Where an object store is: a folder, or a bucket with a prefix.

use std::{path::PathBuf, str::FromStr};

use object_store::path::Path;

use super::Error;

/// The address of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket, called container by Azure.
    Bucket {
        /// Whose interface it has.
        cloud: Cloud,
        /// Its name.
        bucket: String,
        /// What all keys begin with.
        prefix: Path,
    },
}

/// An interface to object stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon's, which many others speak.
    S3,
    /// Azure's blobs.
    Azure,
    /// Google's.
    Google,
}

impl Cloud {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Azure => "az",
            Self::Google => "gs",
        }
    }
}

impl Address {
    /// Whose interface it has; none for a folder.
    pub fn cloud(&self) -> Option<Cloud> {
        match self {
            Self::Folder(_) => None,
            Self::Bucket { cloud, .. } => Some(*cloud),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket { cloud, bucket, prefix } if prefix.is_root() => write!(f, "{}://{bucket}", cloud.scheme()),
            Self::Bucket { cloud, bucket, prefix } => write!(f, "{}://{bucket}/{prefix}", cloud.scheme()),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = |why: &str| {
            // What may be a login is not shown.
            let shown = text.split(['@', '?', '#']).next().filter(|shown| shown.len() == text.len());
            let address =
                shown.map_or_else(|| format!("{}://…", text.split("://").next().unwrap_or_default()), str::to_owned);
            Error::Address { address, why: why.to_owned() }
        };
        let (scheme, rest) = match text.split_once("://") {
            None if text.is_empty() => return Err(error("it is empty")),
            None => return Ok(Self::Folder(text.into())),
            Some(("file", path)) if path.starts_with('/') => return Ok(Self::Folder(path.into())),
            Some(("file", _)) => return Err(error("after file:// comes an absolute path")),
            Some(parts) => parts,
        };
        let cloud = match scheme {
            "s3" => Cloud::S3,
            "az" => Cloud::Azure,
            "gs" => Cloud::Google,
            "s3a" => return Err(error("write s3://BUCKET/PREFIX")),
            "azure" | "abfs" | "abfss" | "adl" => {
                return Err(error("write az://CONTAINER/PREFIX, and the account's name into the credentials"));
            }
            "http" | "https" => {
                return Err(error("write s3://, az:// or gs:// and the bucket, and the server as --store-endpoint"));
            }
            _ => return Err(error("give a folder, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX")),
        };
        if rest.contains(['@', '?', '#']) {
            return Err(error("an address holds no login and no query; put credentials into --store-credentials FILE"));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '$');
        if bucket.is_empty() || !bucket.chars().all(is_name) {
            return Err(error("after :// comes the name of a bucket, of letters, digits, - and ."));
        }
        let prefix =
            Path::parse(prefix).map_err(|_| error("the part after the bucket has an empty part, or . or .."))?;
        Ok(Self::Bucket { cloud, bucket: bucket.to_owned(), prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let read = |text: &str| text.parse::<Address>().unwrap().to_string();
        for text in ["/srv/store", "store", "s3://models", "s3://models/a/b", "az://c/p", "gs://b.example/p"] {
            assert_eq!(read(text), text);
        }
        assert_eq!(read("file:///srv/store"), "/srv/store");
        assert_eq!(read("s3://models/"), "s3://models");
        assert_eq!(read("s3://models/a/"), "s3://models/a");
    }

    #[test]
    fn another_kind_of_address_is_refused_with_the_one_to_write() {
        for (text, word) in [
            ("", "empty"),
            ("file://store", "absolute"),
            ("ftp://b", "s3://BUCKET"),
            ("abfss://c", "az://CONTAINER"),
            ("https://b.s3.amazonaws.com", "--store-endpoint"),
            ("s3://", "name of a bucket"),
            ("s3://b:9000/x", "name of a bucket"),
            ("gs://b/a//c", "empty part"),
            ("gs://b/../c", ".."),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_login_in_an_address_is_refused_and_not_repeated() {
        for text in ["s3://me:hush@bucket/x", "az://c/p?sv=1&sig=hush", "ftp://me:hush@x"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
