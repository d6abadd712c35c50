//! Credentials in addresses: found, so that they are refused, and blotted out, so that they reach no log.
//!
//! It knows what a credential in an address looks like. It does not know what any address is for.

/// Names of query parameters that carry a credential: signed addresses of object stores, and tokens.
const SECRET_PARAMETERS: [&str; 9] = [
    "sig",
    "signature",
    "token",
    "access_token",
    "password",
    "api_key",
    "apikey",
    "x-amz-signature",
    "x-goog-signature",
];

/// Whether some address in a text carries a credential: a user or password before `@`, or a signature or token in its query.
pub(crate) fn is_in(text: &str) -> bool {
    redact(text) != text
}

/// The text with `***` in place of each credential in an address.
pub(crate) fn redact(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let scheme_start = rest[..at]
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')))
            .map_or(0, |before| before + rest[before..].chars().next().map_or(1, char::len_utf8));
        let scheme = &rest[scheme_start..at];
        clean.push_str(&rest[..at + 3]);
        rest = &rest[at + 3..];
        let end =
            rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>')).unwrap_or(rest.len());
        clean.push_str(&redact_address(scheme, &rest[..end]));
        rest = &rest[end..];
    }
    clean.push_str(rest);
    clean
}

/// Blots out what follows `scheme://`.
fn redact_address(scheme: &str, address: &str) -> String {
    let end = address.find(['/', '?', '#']).unwrap_or(address.len());
    let (authority, path) = address.split_at(end);
    let mut clean = String::with_capacity(address.len());
    match authority.rsplit_once('@') {
        // The user of an SSH address is `git` for everybody: only a password is a secret.
        Some((user, host)) if !scheme.ends_with("ssh") || user.contains(':') => {
            clean.push_str(if user == "***" || user.ends_with(":****") { user } else { "***" });
            clean.push('@');
            clean.push_str(host);
        }
        _ => clean.push_str(authority),
    }
    let Some((before, query)) = path.split_once('?') else {
        clean.push_str(path);
        return clean;
    };
    let (query, fragment) = query.split_at(query.find('#').unwrap_or(query.len()));
    clean.push_str(before);
    clean.push('?');
    let parameters: Vec<String> = query.split('&').map(redact_parameter).collect();
    clean.push_str(&parameters.join("&"));
    clean.push_str(fragment);
    clean
}

fn redact_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, value)) if !value.is_empty() && SECRET_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) => {
            format!("{name}=***")
        }
        _ => parameter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn credentials_are_blotted_out_and_the_rest_stays() {
        for (text, clean) in [
            ("--index-url https://user:hunter2@host/simple", "--index-url https://***@host/simple"),
            ("git+https://TOKEN@github.com/a/b.git@main#egg=b", "git+https://***@github.com/a/b.git@main#egg=b"),
            ("git+ssh://git@github.com/a/b.git", "git+ssh://git@github.com/a/b.git"),
            ("git+ssh://git:pw@github.com/a/b.git", "git+ssh://***@github.com/a/b.git"),
            ("RUN pip install -i 'https://a:b@h/s' x", "RUN pip install -i 'https://***@h/s' x"),
            (
                "https://acc.blob.core.windows.net/c/a.whl?sv=2020&sig=abc%3D#sha256=1",
                "https://acc.blob.core.windows.net/c/a.whl?sv=2020&sig=***#sha256=1",
            ),
            ("two https://a:b@x/ and https://c:d@y/", "two https://***@x/ and https://***@y/"),
            ("é://ü:ö@ä/", "é://***@ä/"),
            ("mail me@example.org", "mail me@example.org"),
            ("https://pypi.org/simple/a@b/", "https://pypi.org/simple/a@b/"),
        ] {
            assert_eq!(redact(text), clean);
            assert_eq!(is_in(text), text != clean, "{text}");
        }
    }

    #[test]
    fn what_uv_has_blotted_out_already_stays_as_it_is() {
        let text = "error: `thing @ http://user:****@127.0.0.1:1/thing-1.0-py3-none-any.whl`";
        assert_eq!(redact(text), text);
    }

    proptest! {
        #[test]
        fn a_password_never_survives(before in "\\PC{0,20}", user in "[a-z]{1,8}", password in "SECRET[a-z0-9:@]{0,10}", after in "\\PC{0,20}") {
            let text = format!("{before} https://{user}:{password}@host.example/{after}");
            prop_assert!(!redact(&text).contains("SECRET"), "{}", redact(&text));
        }

        #[test]
        fn blotting_out_twice_changes_nothing_more(text in "\\PC{0,60}") {
            let once = redact(&text);
            prop_assert_eq!(redact(&once), once);
        }
    }
}
