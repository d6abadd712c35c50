//! One line of an ignore file: how it is read, and which paths it matches.
//!
//! The rules are those of git 2.39, quirks included, so that what git would leave out is left out here and nothing else; they are held by a
//! differential test against the real program. Paths are bytes, as in git: a name that is not UTF-8 can be ignored like any other.
//! This module knows neither files nor the order in which several lines are asked (see [`crate::ignore`]).

/// A line of an ignore file that can match something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Whether it takes back what an earlier line left out (`!keep.md`).
    pub(crate) negated: bool,
    directories_only: bool,
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// No slash: the last component must be exactly this.
    Name(Vec<u8>),
    /// `*` and then no wildcard: the last component must end with this.
    Suffix(Vec<u8>),
    /// No slash, some wildcard: matched against the last component.
    NameGlob(Glob),
    /// A slash somewhere: the path, seen from the ignore file's folder, must begin with the text and go on as the glob says.
    Path(Vec<u8>, Glob),
}

impl Pattern {
    /// Reads one line without its line feed; `None` for comments, empty lines and lines that can never match.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        if line.first() == Some(&b'#') {
            return None;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // git keeps lines as C strings: a NUL ends one.
        let line = line.split(|&byte| byte == 0).next().unwrap_or_default();
        let line = trim_trailing_spaces(line);
        let (negated, line) = match line.strip_prefix(b"!") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let (directories_only, line) = match line.strip_suffix(b"/") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        if line.is_empty() {
            return None;
        }
        let shape = if line.contains(&b'/') { Shape::path(line)? } else { Shape::name(line)? };
        Some(Self { negated, directories_only, shape })
    }

    /// Whether it matches `path`, seen from the folder that the ignore file lies in, without a slash at either end.
    pub(crate) fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if self.directories_only && !is_directory {
            return false;
        }
        let name = || path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        match &self.shape {
            Shape::Name(wanted) => name() == wanted,
            Shape::Suffix(wanted) => name().ends_with(wanted),
            Shape::NameGlob(glob) => glob.matches(name()),
            Shape::Path(start, glob) => path.strip_prefix(start.as_slice()).is_some_and(|rest| glob.matches(rest)),
        }
    }
}

impl Shape {
    fn name(line: &[u8]) -> Option<Self> {
        if !line.iter().any(is_special) {
            return Some(Self::Name(line.to_vec()));
        }
        match line.strip_prefix(b"*") {
            Some(rest) if !rest.iter().any(is_special) => Some(Self::Suffix(rest.to_vec())),
            _ => Some(Self::NameGlob(Glob::parse(line, false)?)),
        }
    }

    fn path(line: &[u8]) -> Option<Self> {
        let line = line.strip_prefix(b"/").unwrap_or(line);
        // git compares the part before the first wildcard as text and matches the rest on its own,
        // which shows: `a**/b` begins its rest with `**/` and so matches `ab` and `a/x/b`.
        let plain = line.iter().position(is_special_ref).unwrap_or(line.len());
        let (start, rest) = line.split_at(plain);
        Some(Self::Path(start.to_vec(), Glob::parse(rest, true)?))
    }
}

fn is_special(byte: &u8) -> bool {
    matches!(byte, b'*' | b'?' | b'[' | b'\\')
}

fn is_special_ref(byte: &u8) -> bool {
    is_special(byte)
}

/// Cuts spaces (and no other white space) at the end, except one that a backslash stands before.
fn trim_trailing_spaces(line: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut at = 0;
    while at < line.len() {
        match line[at] {
            b' ' => at += 1,
            b'\\' if at + 1 == line.len() => return line,
            b'\\' => {
                at += 2;
                end = at;
            }
            _ => {
                at += 1;
                end = at;
            }
        }
    }
    &line[..end]
}

/// A text with wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Glob {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// This byte.
    Byte(u8),
    /// Any byte but a slash: `?`.
    Any,
    /// One of a set of bytes: `[a-z]`.
    Set(Box<Set>),
    /// Anything without a slash: `*`.
    Star,
    /// Anything at all: `**` at the end of a path.
    Everything,
    /// Nothing, or anything that ends with a slash: `**/`.
    Folders,
}

impl Token {
    fn accepts(&self, byte: u8) -> bool {
        match self {
            Self::Byte(wanted) => byte == *wanted,
            Self::Any => byte != b'/',
            Self::Set(set) => set.contains(byte),
            Self::Star | Self::Everything | Self::Folders => false,
        }
    }
}

/// Where to go on when the text does not match: the token, the next place in the text, and whether only places behind a slash count.
#[derive(Clone, Copy)]
struct Resume {
    token: usize,
    text: usize,
    behind_slash: bool,
}

impl Resume {
    /// The next place at which a `*` may end.
    fn after_star(self, text: &[u8]) -> Option<Self> {
        let inside = text.get(self.text).is_some_and(|&byte| byte != b'/');
        inside.then_some(Self { text: self.text + 1, ..self })
    }

    /// The next place at which a `**` may end.
    fn after_stars(self, text: &[u8]) -> Option<Self> {
        let rest = text.get(self.text..).filter(|rest| !rest.is_empty())?;
        let step = if self.behind_slash { rest.iter().position(|&byte| byte == b'/')? } else { 0 };
        Some(Self { text: self.text + step + 1, ..self })
    }
}

impl Glob {
    /// Reads a pattern; in a `path` stars stop at slashes and double stars do not. `None` if it is malformed, which git lets match nothing.
    fn parse(pattern: &[u8], path: bool) -> Option<Self> {
        let mut tokens = Vec::with_capacity(pattern.len());
        let mut at = 0;
        while let Some(&byte) = pattern.get(at) {
            at += 1;
            match byte {
                b'\\' => {
                    tokens.push(Token::Byte(*pattern.get(at)?));
                    at += 1;
                }
                b'?' => tokens.push(Token::Any),
                b'[' => {
                    let (set, end) = Set::parse(pattern, at)?;
                    tokens.push(Token::Set(Box::new(set)));
                    at = end;
                }
                b'*' => {
                    let first = at - 1;
                    at += pattern[at..].iter().take_while(|&&byte| byte == b'*').count();
                    let (token, end) = stars(pattern, first, at, path);
                    tokens.push(token);
                    at = end;
                }
                _ => tokens.push(Token::Byte(byte)),
            }
        }
        Some(Self { tokens })
    }

    /// Whether it matches the whole text.
    ///
    /// Only the newest star and the newest double star are ever tried again: what an older one could reach, a newer one reaches too. So
    /// hostile patterns cost at most the product of the lengths, times the number of folders.
    fn matches(&self, text: &[u8]) -> bool {
        let (mut token, mut at) = (0, 0);
        let (mut star, mut stars): (Option<Resume>, Option<Resume>) = (None, None);
        loop {
            match self.tokens.get(token) {
                None if at == text.len() => return true,
                Some(Token::Star) => {
                    token += 1;
                    star = Some(Resume { token, text: at, behind_slash: false });
                    continue;
                }
                Some(wide @ (Token::Everything | Token::Folders)) => {
                    token += 1;
                    star = None;
                    stars = Some(Resume { token, text: at, behind_slash: matches!(wide, Token::Folders) });
                    continue;
                }
                Some(narrow) if text.get(at).is_some_and(|&byte| narrow.accepts(byte)) => {
                    token += 1;
                    at += 1;
                    continue;
                }
                _ => {}
            }
            star = star.and_then(|resume| resume.after_star(text));
            let resume = match star {
                Some(resume) => resume,
                None => {
                    stars = stars.and_then(|resume| resume.after_stars(text));
                    match stars {
                        Some(resume) => resume,
                        None => return false,
                    }
                }
            };
            (token, at) = (resume.token, resume.text);
        }
    }
}

/// What the stars from `first` to `end` mean, and where the pattern goes on.
fn stars(pattern: &[u8], first: usize, end: usize, path: bool) -> (Token, usize) {
    let double = end - first > 1;
    let opens = first == 0 || pattern[first - 1] == b'/';
    match &pattern[end..] {
        _ if !path || !double || !opens => (Token::Star, end),
        [] | [b'\\', b'/', ..] => (Token::Everything, end),
        [b'/', ..] => (Token::Folders, end + 1),
        _ => (Token::Star, end),
    }
}

/// A set of bytes; never a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    bits: [u64; 4],
}

impl Set {
    fn contains(&self, byte: u8) -> bool {
        self.bits[usize::from(byte >> 6)] & (1 << (byte & 63)) != 0
    }

    fn insert(&mut self, byte: u8) {
        self.bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    /// Reads from behind the opening bracket; gives the set and the place behind the closing one.
    fn parse(pattern: &[u8], mut at: usize) -> Option<(Self, usize)> {
        let mut set = Self { bits: [0; 4] };
        let negated = matches!(pattern.get(at), Some(b'!' | b'^'));
        at += usize::from(negated);
        let first = at;
        let mut previous: Option<u8> = None;
        loop {
            let byte = *pattern.get(at)?;
            match byte {
                b']' if at > first => break,
                b'\\' => {
                    at += 1;
                    let escaped = *pattern.get(at)?;
                    set.insert(escaped);
                    previous = Some(escaped);
                }
                b'-' if previous.is_some() && pattern.get(at + 1).is_some_and(|&next| next != b']') => {
                    at += 1;
                    at += usize::from(pattern[at] == b'\\');
                    let last = *pattern.get(at)?;
                    (previous?..=last).for_each(|byte| set.insert(byte));
                    previous = None;
                }
                b'[' if pattern.get(at + 1) == Some(&b':') => match named_class(pattern, at + 2)? {
                    Some((class, end)) => {
                        (0..=u8::MAX).filter(|&byte| class(byte)).for_each(|byte| set.insert(byte));
                        previous = None;
                        at = end;
                    }
                    None => {
                        set.insert(b'[');
                        previous = Some(b'[');
                    }
                },
                _ => {
                    set.insert(byte);
                    previous = Some(byte);
                }
            }
            at += 1;
        }
        if negated {
            set.bits = set.bits.map(|word| !word);
        }
        set.bits[usize::from(b'/' >> 6)] &= !(1 << (b'/' & 63));
        Some((set, at + 1))
    }
}

type Class = fn(u8) -> bool;

/// Reads a class from behind `[:`: the class and the place of its closing bracket; `Some(None)` if it is no class but plain characters.
fn named_class(pattern: &[u8], start: usize) -> Option<Option<(Class, usize)>> {
    let end = start + pattern[start..].iter().position(|&byte| byte == b']')?;
    let Some(name) = pattern[start..end].strip_suffix(b":") else { return Some(None) };
    // The ASCII classes as git defines them: its white space has neither form feed nor vertical tab.
    let class: Class = match name {
        b"alnum" => |byte| byte.is_ascii_alphanumeric(),
        b"alpha" => |byte| byte.is_ascii_alphabetic(),
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => |byte| byte.is_ascii_control(),
        b"digit" => |byte| byte.is_ascii_digit(),
        b"graph" => |byte| byte.is_ascii_graphic(),
        b"lower" => |byte| byte.is_ascii_lowercase(),
        b"print" => |byte| byte.is_ascii_graphic() || byte == b' ',
        b"punct" => |byte| byte.is_ascii_punctuation(),
        b"space" => |byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'),
        b"upper" => |byte| byte.is_ascii_uppercase(),
        b"xdigit" => |byte| byte.is_ascii_hexdigit(),
        _ => return None,
    };
    Some(Some((class, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, path: &str, is_directory: bool) -> bool {
        Pattern::parse(pattern.as_bytes()).is_some_and(|pattern| pattern.matches(path.as_bytes(), is_directory))
    }

    #[test]
    fn a_name_matches_in_every_folder_and_an_anchored_one_only_here() {
        assert!(check("a.log", "a.log", false));
        assert!(check("a.log", "x/y/a.log", false));
        assert!(check("*.log", "x/y/a.log", false));
        assert!(!check("/a.log", "x/a.log", false));
        assert!(check("/a.log", "a.log", false));
        assert!(!check("x/a.log", "y/x/a.log", false));
        assert!(check("x/*.log", "x/a.log", false));
        assert!(!check("x/*.log", "x/y/a.log", false));
    }

    #[test]
    fn a_slash_at_the_end_asks_for_a_folder() {
        assert!(check("build/", "build", true));
        assert!(!check("build/", "build", false));
        assert!(check("build/", "x/build", true));
    }

    #[test]
    fn double_stars_cross_folders_where_slashes_stand_around_them() {
        assert!(check("**/foo", "foo", false));
        assert!(check("**/foo", "a/b/foo", false));
        assert!(check("a/**/b", "a/b", false));
        assert!(check("a/**/b", "a/x/y/b", false));
        assert!(check("a/**", "a/x/y", false));
        assert!(!check("a/**", "a", true));
        assert!(!check("x/a**b", "x/a/b", false));
        assert!(check("x/a**b", "x/azzb", false));
        assert!(check("a/**\\/b", "a/x/b", false));
        assert!(!check("a/**\\/b", "a/b", false));
    }

    #[test]
    fn braces_are_no_wildcards() {
        assert!(check("a.{b,c}", "a.{b,c}", false));
        assert!(!check("a.{b,c}", "a.b", false));
    }

    #[test]
    fn escapes_and_trailing_spaces_are_read_as_git_reads_them() {
        assert!(check("\\#a", "#a", false));
        assert!(check("\\!a", "!a", false));
        assert!(check("a  ", "a", false));
        assert!(check("a\\ ", "a ", false));
        assert!(check("a\\  ", "a ", false));
        assert!(check("a\t", "a\t", false));
        assert!(check("a\r", "a", false));
        assert!(!check("a\\", "a", false));
        assert!(!check("a\\", "a\\", false));
        assert!(!check("#a", "#a", false));
        assert_eq!(Pattern::parse(b"   "), None);
        assert_eq!(Pattern::parse(b"/"), None);
        assert_eq!(Pattern::parse(b"!"), None);
    }

    #[test]
    fn sets_have_ranges_negation_and_classes_but_no_slash() {
        assert!(check("[a-c]x", "bx", false));
        assert!(!check("[!a-c]x", "bx", false));
        assert!(check("[^a-c]x", "dx", false));
        assert!(check("[]a]x", "]x", false));
        assert!(check("[[:digit:][:upper:]]x", "Qx", false));
        assert!(check("[a-]x", "-x", false));
        assert!(check("[\\]]x", "]x", false));
        assert!(!check("a[!b]c", "a/c", false));
        assert!(!check("[abc", "[abc", false));
        assert!(check("[[:a]x", "[x", false));
        assert!(check("[[:a]x", "ax", false));
        assert!(!check("[[:nonsense:]]", "n", false));
    }

    #[test]
    fn a_hostile_pattern_ends() {
        let pattern = format!("x/{}b", "*a".repeat(200));
        assert!(!check(&pattern, &format!("x/{}", "a".repeat(4000)), false));
        let pattern = format!("{}b", "**/a/".repeat(200));
        assert!(!check(&pattern, &"a/".repeat(2000), false));
    }
}
