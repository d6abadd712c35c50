//! Image references and Dockerfile lines in one canonical spelling.
//!
//! It knows how Docker reads them. It runs nothing and looks nothing up.

/// The full spelling of an image reference: `python:3.11` is `docker.io/library/python:3.11`.
///
/// Where a digest is given it decides alone, as in Docker, so that the tag is left out.
pub(crate) fn image(reference: &str) -> String {
    let reference = reference.trim();
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match name[last..].rfind(':') {
        Some(colon) => (&name[..last + colon], &name[last + colon + 1..]),
        None => (name, "latest"),
    };
    let (domain, path) = match name.split_once('/') {
        Some((domain, path)) if domain.contains(['.', ':']) || domain == "localhost" => {
            (domain.to_ascii_lowercase(), path)
        }
        _ => ("docker.io".to_owned(), name),
    };
    let (domain, library) = match domain.as_str() {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" if path.contains('/') => ("docker.io", ""),
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => ("docker.io", "library/"),
        other => (other, ""),
    };
    match digest {
        Some(digest) => format!("{domain}/{library}{path}@{}", digest.to_ascii_lowercase()),
        None => format!("{domain}/{library}{path}:{tag}"),
    }
}

/// The instructions of Dockerfile lines, in order: comments and blank lines left out, continued lines joined, instructions in capitals.
///
/// Source: the Dockerfile reference. The lines of a here-document are kept as they are, since they are a file's content.
pub(crate) fn steps(text: &str) -> Vec<String> {
    let mut steps = directives(text);
    let escape = if steps.iter().any(|line| line == "# escape=`") { '`' } else { '\\' };
    let mut lines = text.lines();
    let mut joined: Option<String> = None;
    while let Some(line) = lines.next() {
        let line = line.trim_end();
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (piece, continues) = match line.strip_suffix(escape) {
            Some(piece) => (piece, true),
            None => (line, false),
        };
        joined.get_or_insert_default().push_str(piece);
        if !continues {
            let step = instruction(&joined.take().unwrap_or_default());
            let mut whole = vec![step.as_str()];
            for document in here_documents(&step) {
                for line in lines.by_ref() {
                    whole.push(line);
                    if document.ends_at(line) {
                        break;
                    }
                }
            }
            steps.push(whole.join("\n"));
        }
    }
    steps.extend(joined.map(|unfinished| instruction(&unfinished)));
    steps
}

/// Parser directives: comments `# name=value` before anything else.
fn directives(text: &str) -> Vec<String> {
    text.lines()
        .map_while(|line| {
            let (name, value) = line.trim().strip_prefix('#')?.split_once('=')?;
            let name = name.trim().to_ascii_lowercase();
            matches!(name.as_str(), "syntax" | "escape" | "check").then(|| format!("# {name}={}", value.trim()))
        })
        .collect()
}

/// One instruction: its name in capitals, one blank, its arguments.
fn instruction(text: &str) -> String {
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some((name, arguments)) => format!("{} {}", name.to_ascii_uppercase(), arguments.trim_start()),
        None => text.to_ascii_uppercase(),
    }
}

struct HereDocument<'a> {
    name: &'a str,
    tabs: bool,
}

impl HereDocument<'_> {
    fn ends_at(&self, line: &str) -> bool {
        if self.tabs { line.trim_start_matches('\t') == self.name } else { line == self.name }
    }
}

/// The here-documents that follow an instruction, from words such as `<<EOF`, `<<-"EOF"` and `3<<EOF`.
fn here_documents(step: &str) -> Vec<HereDocument<'_>> {
    if !["RUN ", "COPY ", "ADD "].iter().any(|name| step.starts_with(name)) {
        return Vec::new();
    }
    let word = |word| {
        let rest: &str = word;
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let (rest, tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
        let name = rest.trim_matches(['"', '\'']);
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        valid.then_some(HereDocument { name, tabs })
    };
    step.split_whitespace().filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_spelling() {
        for (written, full) in [
            ("python", "docker.io/library/python:latest"),
            (" python:3.11 ", "docker.io/library/python:3.11"),
            ("docker.io/library/python:3.11", "docker.io/library/python:3.11"),
            ("index.docker.io/library/python:3.11", "docker.io/library/python:3.11"),
            ("ubuntu/python:3", "docker.io/ubuntu/python:3"),
            ("MCR.microsoft.com/azureml/base:1", "mcr.microsoft.com/azureml/base:1"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("python:3.11@sha256:AB", "docker.io/library/python@sha256:ab"),
        ] {
            assert_eq!(image(written), full);
        }
    }

    #[test]
    fn comments_blanks_and_spelling_of_steps_do_not_count() {
        let tidy = "ENV A=1\nRUN apt-get update && apt-get install -y x\n";
        let wild = "# first\r\n\r\nenv   A=1  \r\nrun apt-get update && \\  \n\n  # why\napt-get install -y x";
        assert_eq!(steps(tidy), steps(wild));
        assert_eq!(steps(tidy), ["ENV A=1", "RUN apt-get update && apt-get install -y x"]);
    }

    #[test]
    fn order_and_arguments_of_steps_count() {
        assert_ne!(steps("RUN a\nRUN b"), steps("RUN b\nRUN a"));
        assert_ne!(steps("RUN echo 'a b'"), steps("RUN echo 'a  b'"));
        assert_ne!(steps("RUN a"), steps("CMD a"));
        assert_ne!(steps("ENV a=b"), steps("ENV A=b"));
    }

    #[test]
    fn a_here_document_is_content() {
        let text = "RUN <<EOF\n# no comment\n\n  x  \nEOF\nrun b";
        assert_eq!(steps(text), ["RUN <<EOF\n# no comment\n\n  x  \nEOF", "RUN b"]);
        assert_eq!(steps("COPY <<-'E' /f\na\n\tE\nRUN b").len(), 2);
        assert_eq!(steps("RUN echo $((1 << n))\nRUN b").len(), 2);
        assert_eq!(steps("RUN cat <<EOF\nnever ended").len(), 1);
    }

    #[test]
    fn parser_directives_at_the_top_count() {
        assert_eq!(steps("#escape=`\nFROM a\nRUN b `\n c"), ["# escape=`", "FROM a", "RUN b  c"]);
        assert_eq!(steps("# a comment\n# escape=`\nFROM a"), ["FROM a"]);
        assert_eq!(steps("RUN unfinished \\"), ["RUN unfinished"]);
    }
}
