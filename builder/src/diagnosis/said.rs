//! The output of uv as something that can be asked: it wraps lines where it likes, and says what was wrong in the middle.

/// How many of the last lines show what happened.
const SHOWN: usize = 30;

/// The output, as lines and as one text without line breaks and decorations, since uv wraps where it likes.
pub(super) struct Said<'a> {
    pub(super) lines: &'a [String],
    pub(super) text: String,
}

impl<'a> Said<'a> {
    pub(super) fn new(lines: &'a [String]) -> Self {
        let mut text = String::new();
        for word in lines.iter().flat_map(|line| line.split_whitespace()) {
            let word = word.trim_matches(['×', '╰', '─', '▶', '├', '│']);
            if !word.is_empty() {
                text.push_str(if text.is_empty() { "" } else { " " });
                text.push_str(word);
            }
        }
        Self { lines, text }
    }

    pub(super) fn has(&self, part: &str) -> bool {
        self.text.contains(part)
    }

    /// What stands between two parts of the text.
    pub(super) fn between(&self, before: &str, after: &str) -> Option<&str> {
        between(&self.text, before, after)
    }

    /// The last lines from the error on, without the noise before it.
    pub(super) fn shown(&self) -> impl Iterator<Item = &'a str> {
        let from = self.lines.iter().position(|line| line.starts_with("error:") || line.trim_start().starts_with('×'));
        let from = from.unwrap_or(0).max(self.lines.len().saturating_sub(SHOWN));
        self.lines[from..].iter().map(String::as_str).filter(|line| !line.trim().is_empty())
    }

    /// Why a host cannot be reached, if that is what happened.
    pub(super) fn unreachable(&self) -> Option<&'static str> {
        [
            ("failed to lookup address", "its name cannot be resolved"),
            ("dns error", "its name cannot be resolved"),
            ("Could not resolve host", "its name cannot be resolved"),
            ("Connection refused", "the connection is refused"),
            ("connection refused", "the connection is refused"),
            ("Network is unreachable", "there is no network"),
            ("No route to host", "there is no route to it"),
            ("operation timed out", "it does not answer in time"),
            ("timed out", "it does not answer in time"),
            ("tcp connect error", "no connection can be made"),
            ("are you offline", "no connection can be made"),
            ("network was disabled", "uv is set to work without the network"),
        ]
        .into_iter()
        .find_map(|(sign, why)| self.has(sign).then_some(why))
    }

    /// The host of the address that was asked last.
    pub(super) fn host(&self) -> Option<String> {
        let url = [
            "Failed to fetch: ",
            "Failed to download ",
            "for url (",
            "unable to access ",
            "An index URL (",
            "An index (",
        ]
        .into_iter()
        .find_map(|sign| self.text.split_once(sign).map(|(_, rest)| rest))?;
        let url = &url[url.find("http")?..];
        let end = url.find(['`', ')', ' ', '\'']).unwrap_or(url.len());
        url::Url::parse(&url[..end]).ok()?.host_str().map(str::to_owned)
    }
}

pub(super) fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}
