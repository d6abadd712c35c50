//! Where a replica listens.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

/// The address of a replica, as the route writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// A Unix socket: `unix:` and its path.
    Unix(PathBuf),
    /// An IP address and port: `http://127.0.0.1:5001`.
    Tcp(SocketAddr),
    /// A host name and port, looked up at each connect: `http://replica-1.kaai:5001`.
    Name(String),
}

/// A text that is no address of a replica.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no address of a replica: it is unix:/path or http://host:port")]
pub(crate) struct Invalid(String);

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(invalid()),
            };
        }
        let authority = text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let authority = authority.ok_or_else(invalid)?;
        if let Ok(address) = authority.parse() {
            return Ok(Self::Tcp(address));
        }
        match authority.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => Ok(Self::Name(authority.to_owned())),
            _ => Err(invalid()),
        }
    }
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Name(authority) => write!(f, "http://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["unix:/run/kaai/r1.sock", "http://127.0.0.1:5001", "http://[::1]:80", "http://r-1.kaai:5001"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("http://10.0.0.1:80/".parse::<Address>().unwrap(), "http://10.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn anything_else_is_no_address() {
        for text in
            ["", "unix:relative", "127.0.0.1:80", "http://host", "http://host:99999", "https://h:1", "http://a/b:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
