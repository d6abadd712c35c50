//! Credentials in addresses: found, so that they are refused, and blotted out, so that they reach no log.
//!
//! Requests and specifications travel in events that others may read, so an environment holds no credential: whoever reads one refuses
//! it, in the words that stand here. It knows what a credential in an address looks like, not what any address is for.

/// What is wrong with a line that holds a credential, after what names the line.
pub const CARRIES: &str = "carries a password or token, which would be seen by everyone who may read the request";

/// What to do about one in a list of Python packages.
pub const REMEDY_OF_A_LIST: &str =
    "take the credential out; let whoever runs the builder configure the index with UV_INDEX_URL";

/// What to do about one anywhere else.
pub const REMEDY: &str = "take the credential out, and replace it where it was in use";

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

/// Whether some address in a text carries a credential: a user or password before `@`, a signature or token in its query, or a conda
/// token (`https://host/t/<token>/channel`).
pub fn is_in(text: &str) -> bool {
    redact(text) != text
}

/// Whether a conda channel carries a credential: as [`is_in`], or a token anywhere in its path, with or without a host before it.
pub fn is_in_channel(channel: &str) -> bool {
    let channel = channel.trim();
    is_in(channel) || channel.contains("/t/") || channel.starts_with("t/")
}

/// Whether the reference of an image carries a credential: as [`is_in`], or a login before its registry, where no `@` belongs.
pub fn is_in_image(reference: &str) -> bool {
    is_in(reference) || reference.split_once('@').is_some_and(|(_, rest)| rest.contains('/'))
}

/// The text with `***` in place of each credential in an address.
pub fn redact(text: &str) -> String {
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
    let path = match path.strip_prefix("/t/").and_then(|rest| rest.split_once('/')) {
        // Behind a token there is a channel, so that a file in a folder `t` is none.
        Some((token, channel)) if !token.is_empty() => {
            clean.push_str("/t/***/");
            channel
        }
        _ => path,
    };
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
            ("conda install -c https://h/t/ab-hunter2/main x", "conda install -c https://h/t/***/main x"),
            ("https://a:b@h/t/hunter2/main?token=c", "https://***@h/t/***/main?token=***"),
            ("https://files.example.org/source/t/tensorflow/x", "https://files.example.org/source/t/tensorflow/x"),
            ("https://h/t/x.whl", "https://h/t/x.whl"),
            ("mail me@example.org", "mail me@example.org"),
            ("https://pypi.org/simple/a@b/", "https://pypi.org/simple/a@b/"),
        ] {
            assert_eq!(redact(text), clean);
            assert_eq!(is_in(text), text != clean, "{text}");
        }
    }

    #[test]
    fn a_channel_and_an_image_have_places_of_their_own_for_a_credential() {
        for channel in ["https://h/repo/t/hunter2/main", "https://h/t/hunter2", "t/hunter2/main", "https://u:p@h/main"]
        {
            assert!(is_in_channel(channel), "{channel}");
        }
        for channel in ["conda-forge", "https://conda.anaconda.org/conda-forge", "https://h/test/main"] {
            assert!(!is_in_channel(channel), "{channel}");
        }
        for image in ["user:hunter2@h.example.org/a/b:1", "hunter2@h/a", "https://user:hunter2@h/a"] {
            assert!(is_in_image(image), "{image}");
        }
        let digest = format!("h.example.org:5000/a/b@sha256:{}", "0".repeat(64));
        for image in ["python:3.11", "h.example.org:5000/a/b:1", &digest] {
            assert!(!is_in_image(image), "{image}");
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
