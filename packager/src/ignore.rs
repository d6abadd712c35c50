//! Which paths of a folder are left out: several ignore files, asked in git's order.
//!
//! An `.amlignore` at the root, if there is one, stands in place of every `.gitignore`; otherwise each folder may have a `.gitignore`, and
//! the deepest one that has something to say decides, by its last line that matches. Nothing outside the folder is ever read, neither a
//! machine's own excludes nor a `.gitignore` further up, so that the same folder gives the same archive everywhere. This module knows
//! nothing of walking: whoever walks must not enter a folder that is left out, as git does not.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use crate::pattern::Pattern;

/// The name of v1's ignore file, which counts only at the root.
pub(crate) const AML_IGNORE: &str = ".amlignore";

/// The name of git's ignore file.
pub(crate) const GIT_IGNORE: &str = ".gitignore";

/// How long an ignore file may be, in bytes: its patterns are kept in memory.
pub(crate) const MAX_IGNORE_FILE: u64 = 1024 * 1024;

/// The rules that hold in one folder: its own ignore file's and those of the folders above.
#[derive(Debug, Default)]
pub(crate) struct Ignore {
    layers: Vec<Layer>,
    amlignore: bool,
}

/// The lines of one ignore file.
#[derive(Debug)]
struct Layer {
    /// How many bytes of a path lead to the file's folder, the slash included.
    base: usize,
    patterns: Vec<Pattern>,
}

impl Ignore {
    /// Reads `.amlignore` at the root, if there is one.
    pub(crate) fn at_root(root: &Path) -> io::Result<Self> {
        let path = root.join(AML_IGNORE);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                let layers = vec![Layer { base: 0, patterns: parse(&read(&path)?) }];
                Ok(Self { layers, amlignore: true })
            }
            Ok(_) => Ok(Self::default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Whether the rules come from `.amlignore`.
    pub(crate) fn is_amlignore(&self) -> bool {
        self.amlignore
    }

    /// Adds the `.gitignore` of a folder, whose path from the root has `base` bytes with its slash; true if there was one that counts.
    ///
    /// A symbolic link of that name is not followed, as git does not follow it.
    pub(crate) fn enter(&mut self, folder: &Path, base: usize) -> io::Result<bool> {
        if self.amlignore {
            return Ok(false);
        }
        let path = folder.join(GIT_IGNORE);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                self.push(base, &read(&path)?);
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn push(&mut self, base: usize, text: &[u8]) {
        self.layers.push(Layer { base, patterns: parse(text) });
    }

    /// Forgets the newest ignore file, when its folder is left.
    pub(crate) fn leave(&mut self) {
        self.layers.pop();
    }

    /// Whether `path`, from the root and with slashes, is left out. Its folder must not have been left out.
    pub(crate) fn leaves_out(&self, path: &[u8], is_directory: bool) -> bool {
        let verdict = self.layers.iter().rev().find_map(|layer| {
            let path = &path[layer.base..];
            layer.patterns.iter().rev().find(|pattern| pattern.matches(path, is_directory))
        });
        verdict.is_some_and(|pattern| !pattern.negated)
    }
}

fn parse(text: &[u8]) -> Vec<Pattern> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    text.split(|&byte| byte == b'\n').filter_map(Pattern::parse).collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_IGNORE_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_IGNORE_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "an ignore file may have 1 MiB at most"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(files: &[(usize, &str)]) -> Ignore {
        let mut ignore = Ignore::default();
        files.iter().for_each(|(base, text)| ignore.push(*base, text.as_bytes()));
        ignore
    }

    #[test]
    fn the_last_line_that_matches_decides() {
        let ignore = rules(&[(0, "notes/*\n!notes/keep.md\n")]);
        assert!(ignore.leaves_out(b"notes/scratch.md", false));
        assert!(!ignore.leaves_out(b"notes/keep.md", false));
        assert!(!ignore.leaves_out(b"notes", true));
    }

    #[test]
    fn the_deepest_file_that_says_something_decides() {
        let ignore = rules(&[(0, "*.log\n"), (2, "!keep.log\n")]);
        assert!(ignore.leaves_out(b"a/x.log", false));
        assert!(!ignore.leaves_out(b"a/keep.log", false));
    }

    #[test]
    fn a_pattern_is_anchored_in_the_folder_of_its_file() {
        let ignore = rules(&[(2, "/x\n")]);
        assert!(ignore.leaves_out(b"a/x", false));
        assert!(!ignore.leaves_out(b"a/b/x", false));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        assert!(rules(&[(0, "\u{feff}a\n")]).leaves_out(b"a", false));
    }
}
