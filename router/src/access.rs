//! Who may call a service: keys, compared by their SHA-256 in constant time.
//!
//! Keys themselves are never kept here. Tokens are not issued yet; a service with token authentication takes keys in their stead,
//! where the route has any.

use hyper::header::HeaderValue;
use proto::{id::Digest, spec::Auth};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone; the `Authorization` header is the script's own affair.
    Open,
    /// Whoever has one of these keys.
    Keys(Vec<[u8; 32]>),
    /// Whoever has a token, and nobody has one yet.
    Tokens,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No `Authorization: Bearer …`.
    Missing,
    /// A key that is not valid, or not any more.
    Wrong,
    /// The service wants tokens, which this version does not issue.
    TokensLater,
}

impl Access {
    /// What a route says of it.
    pub(crate) fn new(auth: Auth, digests: &[Digest]) -> Self {
        match auth {
            Auth::None => Self::Open,
            Auth::Token if digests.is_empty() => Self::Tokens,
            Auth::Key | Auth::Token => Self::Keys(digests.iter().filter_map(bytes).collect()),
        }
    }

    /// Whether the `Authorization` header is meant for the router, so that the replica does not need to see it.
    pub(crate) fn consumes_authorization(&self) -> bool {
        !matches!(self, Self::Open)
    }

    /// Lets a caller in, or says why not.
    pub(crate) fn check(&self, authorization: Option<&HeaderValue>) -> Result<(), Denied> {
        let digests = match self {
            Self::Open => return Ok(()),
            Self::Tokens => return Err(Denied::TokensLater),
            Self::Keys(digests) => digests,
        };
        let key = authorization.and_then(|value| bearer(value.as_bytes())).ok_or(Denied::Missing)?;
        let given: [u8; 32] = Sha256::digest(key).into();
        // Every digest is compared, so that the time does not tell which one was right.
        let known = digests.iter().fold(Choice::from(0), |known, digest| known | digest.ct_eq(&given));
        if known.into() { Ok(()) } else { Err(Denied::Wrong) }
    }
}

/// The credentials of `Bearer <credentials>`; the scheme is case-insensitive (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, credentials) = value.split_at_checked("bearer ".len())?;
    let credentials = credentials.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !credentials.is_empty()).then_some(credentials)
}

fn bytes(digest: &Digest) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(digest.hex().as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(key: &str) -> Digest {
        Digest::from_sha256(Sha256::digest(key).into())
    }

    fn check(access: &Access, header: &'static str) -> Result<(), Denied> {
        access.check(Some(&HeaderValue::from_static(header)))
    }

    #[test]
    fn either_key_opens_and_no_other_does() {
        let access = Access::new(Auth::Key, &[digest("primary"), digest("secondary")]);
        assert_eq!(check(&access, "Bearer primary"), Ok(()));
        assert_eq!(check(&access, "bearer  secondary "), Ok(()));
        assert_eq!(check(&access, "Bearer Primary"), Err(Denied::Wrong));
        assert_eq!(check(&access, "Bearer "), Err(Denied::Missing));
        assert_eq!(check(&access, "Basic primary"), Err(Denied::Missing));
        assert_eq!(check(&access, "primary"), Err(Denied::Missing));
        assert_eq!(access.check(None), Err(Denied::Missing));
    }

    #[test]
    fn a_service_without_keys_stays_shut() {
        assert_eq!(check(&Access::new(Auth::Key, &[]), "Bearer x"), Err(Denied::Wrong));
        assert_eq!(check(&Access::new(Auth::Token, &[]), "Bearer x"), Err(Denied::TokensLater));
    }

    #[test]
    fn keys_stand_in_for_tokens_and_open_services_ask_nothing() {
        assert_eq!(check(&Access::new(Auth::Token, &[digest("k")]), "Bearer k"), Ok(()));
        assert_eq!(Access::new(Auth::None, &[digest("k")]).check(None), Ok(()));
    }
}
