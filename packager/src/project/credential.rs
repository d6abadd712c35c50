//! Credentials in an environment: refused before the project is sent or its request said, since events carry the environment as written.
//!
//! It names places, never what stands there. What a credential looks like is said in [`proto::secret`].

use proto::{
    failure::{Failure, Stage},
    secret,
    spec::EnvironmentSpec,
};

/// Where the texts of an environment stand, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    /// The text of the conda file.
    pub(crate) conda: String,
    /// The file of the docker steps.
    pub(crate) steps: Option<String>,
}

/// Refuses an environment with a credential in its packages, channels, docker steps or base image.
///
/// # Errors
///
/// Fails with all places that hold one.
pub(crate) fn check(environment: &EnvironmentSpec, origin: &Origin) -> Result<(), Failure> {
    let conda = &environment.conda;
    let file = conda.file.as_deref().unwrap_or("the specification");
    let mut found = Vec::new();
    for (list, entries, is_in, remedy) in [
        ("pip", &conda.pip, secret::is_in as fn(&str) -> bool, secret::REMEDY_OF_A_LIST),
        ("dependencies", &conda.dependencies, secret::is_in, secret::REMEDY),
        ("channels", &conda.channels, secret::is_in_channel, secret::REMEDY),
    ] {
        for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| is_in(entry)) {
            found.push(match line_of(entry, &origin.conda) {
                Some(line) => (format!("line {line} of {file}"), remedy),
                None => (format!("entry {} of the list {list} of {file}", index + 1), remedy),
            });
        }
    }
    let steps = origin.steps.as_deref().unwrap_or("the docker steps");
    for (name, text) in [(steps, &environment.docker_steps), ("the Dockerfile", &environment.dockerfile)] {
        let lines = text.as_deref().unwrap_or_default().lines().enumerate();
        let held = lines.filter(|(_, line)| secret::is_in(line));
        found.extend(held.map(|(index, _)| (format!("line {} of {name}", index + 1), secret::REMEDY)));
    }
    if environment.base_image.as_deref().is_some_and(secret::is_in_image) {
        found.push(("the base image".to_owned(), secret::REMEDY));
    }
    let Some((place, remedy)) = found.first() else { return Ok(()) };
    let failure = Failure::project(Stage::Reading, format!("{place} {}", secret::CARRIES), *remedy);
    let more: Vec<_> = found[1..].iter().map(|(place, remedy)| format!("{place} does so too; {remedy}")).collect();
    Err(failure.with_details(more.iter().map(String::as_str)))
}

/// The line of a file that holds an entry; lines that were joined are found by their credential.
fn line_of(entry: &str, text: &str) -> Option<usize> {
    let mut lines = text.lines();
    let found = lines.position(|line| line.contains(entry)).or_else(|| text.lines().position(secret::is_in));
    found.map(|index| index + 1)
}

/// The same failure with every credential in an address blotted out: messages quote names and lines of a project's files.
pub(crate) fn without(mut failure: Failure) -> Failure {
    for text in [&mut failure.cause, &mut failure.remedy].into_iter().chain(&mut failure.details) {
        *text = secret::redact(text);
    }
    failure
}

#[cfg(test)]
mod tests {
    use proto::spec::CondaSpec;

    use super::*;

    #[test]
    fn every_place_of_an_environment_is_looked_at() {
        let own = |text: &str| Some(text.to_owned());
        let conda = |conda: CondaSpec| EnvironmentSpec { conda, ..EnvironmentSpec::default() };
        let lines = |line: &str| vec!["numpy".to_owned(), line.to_owned()];
        let index = "--index-url https://u:hunter2@h/simple";
        let image = EnvironmentSpec { base_image: own("u:hunter2@h.example.org/a"), ..EnvironmentSpec::default() };
        let dockerfile = own("FROM a\nADD https://h/x?token=hunter2 /x\n");
        let steps = own("# conda config --add channels https://h/t/hunter2/main\n");
        for (environment, place) in [
            (conda(CondaSpec { pip: lines(index), ..CondaSpec::default() }), "entry 2 of the list pip of the spec"),
            (conda(CondaSpec { dependencies: lines("https://hunter2@h/x"), ..CondaSpec::default() }), "dependencies"),
            (conda(CondaSpec { channels: lines("https://h/a/t/hunter2/b"), ..CondaSpec::default() }), "channels"),
            (image, "the base image"),
            (EnvironmentSpec { docker_steps: steps, ..EnvironmentSpec::default() }, "line 1 of the docker steps"),
            (EnvironmentSpec { dockerfile, ..EnvironmentSpec::default() }, "line 2 of the Dockerfile"),
        ] {
            let failure = check(&environment, &Origin::default()).unwrap_err();
            assert!(failure.cause.contains(place), "{failure}");
            assert!(failure.cause.ends_with(secret::CARRIES) && failure.remedy.contains("take the credential out"));
            assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
        }
        assert!(check(&EnvironmentSpec::default(), &Origin::default()).is_ok());
    }
}
