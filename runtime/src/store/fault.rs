//! What went wrong at a store, in words, with what to do about it.
//!
//! The servers of all clouds answer with a code in XML or JSON. Their texts are not repeated where the code says it all: they can
//! run over pages, and name what was signed.

/// Codes of an answer, what they mean, and what to do.
const KNOWN: [(&[&str], &str); 11] = [
    (
        &["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"],
        "there is no such bucket; make it, or name another with --store",
    ),
    (
        &[
            "ExpiredToken",
            "TokenRefreshRequired",
            "Signature not valid in the specified time frame",
            "Signature fields not well formed",
        ],
        "the credentials have expired; renew them",
    ),
    (
        &["InvalidAccessKeyId", "InvalidToken", "UnrecognizedClientException"],
        "the store does not know the access key; look at the credentials",
    ),
    (
        &["SignatureDoesNotMatch", "AuthenticationFailed", "InvalidAuthenticationInfo", "invalid_grant"],
        "the store does not accept the secret key; look at the credentials",
    ),
    // Azure says the same of a wrong key and of a right one that may not do this.
    (&["AuthorizationFailure"], "the store does not let these credentials in; look at them, and at what they may do"),
    (&["RequestTimeTooSkewed"], "the clock of this machine is wrong; set it"),
    (
        &[
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
            "IllegalLocationConstraint",
            "incorrectly configured region",
        ],
        "the bucket is in another region; name it with --store-region",
    ),
    (
        &["AccessDenied", "AuthorizationPermissionMismatch", "InsufficientAccountPermissions", "403 Forbidden"],
        "access is denied; give these credentials the right to read, write, list and delete there",
    ),
    (
        &["invalid peer certificate", "UnknownIssuer", "certificate verify failed"],
        "its certificate is not trusted; name the authority that signed it with --store-ca",
    ),
    (
        &["No CA certificates were loaded"],
        "this machine has no certificates of authorities; install ca-certificates, or name some with --store-ca",
    ),
    (
        &["169.254.169.254", "169.254.170", "metadata.google.internal"],
        "there are no credentials: no --store-credentials, no variables, and no role of this machine",
    ),
];

/// How much of a text that is not known is repeated.
const MOST: usize = 300;

/// The cause, and where it is known the remedy after a semicolon.
pub(super) fn explain(error: &object_store::Error) -> String {
    let texts = chain(error);
    let whole = texts.join("\n");
    if let Some((_, meaning)) = KNOWN.iter().find(|(codes, _)| codes.iter().any(|code| whole.contains(code))) {
        return (*meaning).to_owned();
    }
    if let Some(code) = between(&whole, "<Code>", "</Code>") {
        return format!(
            "the store answered {code}: {}",
            short(between(&whole, "<Message>", "</Message>").unwrap_or_default())
        );
    }
    if let Some(status) = between(&whole, "non-2xx status code: ", ":") {
        return format!("the store answered {status}");
    }
    // The innermost text is the one of the operating system or of TLS.
    let innermost = texts.last().map(String::as_str).unwrap_or_default();
    let words =
        ["error sending request", "error trying to connect", "operation timed out", "tcp connect error", "dns error"];
    match words.iter().any(|word| whole.contains(word)) {
        true => format!("it is not reachable ({})", short(innermost)),
        false => short(innermost).to_owned(),
    }
}

/// Whether there is no such key, and not no such bucket.
pub(super) fn is_missing_key(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
        && !KNOWN[0].0.iter().any(|code| chain(error).concat().contains(code))
}

fn chain(error: &object_store::Error) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = next {
        texts.push(error.to_string());
        next = error.source();
    }
    texts
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    Some(rest.split_once(after)?.0)
}

/// The first line, without the address that a request went to: a token may be in it.
fn short(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" for url (").next().unwrap_or_default();
    let end = line.char_indices().nth(MOST).map_or(line.len(), |(at, _)| at);
    &line[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn a_code_is_told_in_words_with_what_to_do() {
        let answer = |code: &str| {
            format!(
                "Server returned non-2xx status code: 403 Forbidden: <Error><Code>{code}</Code><Message>no</Message><StringToSign>x</StringToSign></Error>"
            )
        };
        for (code, word) in [
            ("NoSuchBucket", "no such bucket"),
            ("InvalidAccessKeyId", "access key"),
            ("SignatureDoesNotMatch", "secret key"),
            ("ExpiredToken", "expired"),
            ("AuthorizationHeaderMalformed", "--store-region"),
            ("AccessDenied", "access is denied"),
        ] {
            let told = explain(&error(&answer(code)));
            assert!(told.contains(word) && !told.contains("StringToSign"), "{code}: {told}");
        }
        let other = "Server returned non-2xx status code: 503 Service Unavailable: <Code>SlowDown</Code><Message>less</Message>";
        assert_eq!(explain(&error(other)), "the store answered SlowDown: less");
        assert_eq!(
            explain(&error("Server returned non-2xx status code: 500 Internal Server Error: ")),
            "the store answered 500 Internal Server Error"
        );
    }

    #[test]
    fn an_address_with_a_token_is_not_repeated() {
        let told = explain(&error("error sending request for url (https://x/?sig=hush)"));
        assert!(told.starts_with("it is not reachable") && !told.contains("hush"), "{told}");
    }
}
