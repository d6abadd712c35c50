//! Bytecode: the modules of an environment compiled once, so that no start has to, and kept for other environments.
//!
//! It knows what the compiling program is told and says. It does not know how an environment came to be.

use std::{io, path::Path};

use proto::failure::{Failure, Stage};

use crate::{
    build_log::BuildLog,
    disk::disk,
    kept::Kept,
    process::{self, Ended},
    uv::Uv,
};

/// It runs in the environment's own Python.
const PROGRAM: &str = include_str!("bytecode.py");

/// What is compiled, and for where.
pub(crate) struct Modules<'a> {
    /// The environment.
    pub(crate) environment: &'a Path,
    /// Whether all of Python's library is the environment's own, as conda's is, and not its packages only.
    pub(crate) with_library: bool,
    /// Where the environment is going to lie.
    pub(crate) home: &'a Path,
    /// What was compiled before. With it the result depends on the sources alone.
    pub(crate) kept: Option<&'a Kept>,
}

impl Modules<'_> {
    /// Compiles them; what is not for this Python stays as it is.
    ///
    /// # Errors
    ///
    /// Fails when the environment has no library, its Python cannot be started, or not all modules could be looked at.
    pub(crate) async fn compile(&self, uv: &Uv, log: &BuildLog) -> Result<(), Failure> {
        let failed = |error: io::Error| disk(self.environment, &error);
        let mut libraries = tokio::fs::read_dir(self.environment.join("lib")).await.map_err(failed)?;
        while let Some(library) = libraries.next_entry().await.map_err(failed)? {
            let python = library.file_name().to_string_lossy().starts_with("python3.");
            if !python || !library.file_type().await.is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let part = if self.with_library { "" } else { "site-packages" };
            let mut command = uv.command(&self.environment.join("bin/python"));
            // Packages' own hooks (.pth) do not run.
            command.args(["-S", "-W", "ignore", "-c", PROGRAM]).arg(library.path().join(part));
            command.arg(self.home.join("lib").join(library.file_name()).join(part)).args(self.kept.map(Kept::folder));
            // Sets are written down in an order that is the same everywhere, and what is imported meanwhile names no time.
            command.env("PYTHONHASHSEED", "0").env("PYTHONDONTWRITEBYTECODE", "1");
            log.line("compiling bytecode");
            let ended = process::run(command, |_| ()).await.map_err(failed)?;
            ended.stderr.iter().for_each(|line| log.line(line));
            if !ended.status.success() {
                return Err(unfinished(self.environment, &ended));
            }
            log.line(&said(&ended.stdout));
        }
        Ok(())
    }
}

/// A part of the modules was not compiled, and which one is chance: no two such environments are equal.
fn unfinished(environment: &Path, ended: &Ended) -> Failure {
    if let Some(error) = ended.stderr.iter().find(|line| line.contains("No space left") || line.contains("quota")) {
        return disk(environment, &io::Error::new(io::ErrorKind::StorageFull, error.clone()));
    }
    let why = ended.stderr.last().cloned().unwrap_or_else(|| ended.status.to_string());
    Failure::platform(
        Stage::Building,
        format!("the modules of the environment could not be compiled: {why}"),
        "deploy again; if it stays so, see whether the builder has enough memory",
    )
}

/// The line for the log.
fn said(lines: &[String]) -> String {
    let mut sums = [0_u64; 3];
    for line in lines {
        sums.iter_mut().zip(line.split(' ').flat_map(str::parse::<u64>)).for_each(|(sum, count)| *sum += count);
    }
    let [compiled, taken, left] = sums;
    match left {
        0 => format!("Bytecode compiled: {compiled} modules, {taken} known before"),
        left => {
            format!(
                "Bytecode compiled: {compiled} modules, {taken} known before, {left} that this Python cannot compile"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::PathBuf};

    use super::*;

    /// An environment of this machine's Python with one package, and the log's last line about compiling it.
    async fn compiled(parent: &Path, kept: Option<&Kept>) -> (PathBuf, String) {
        compiled_with(parent, kept, |_| ()).await
    }

    /// The same with something more in it.
    async fn compiled_with(parent: &Path, kept: Option<&Kept>, more: impl FnOnce(&Path)) -> (PathBuf, String) {
        let folder = tempfile::tempdir_in(parent).unwrap();
        let uv = crate::Config::default().uv();
        let find = ["python", "find", "--no-project", "--system", "--no-python-downloads"];
        let mut command = uv.command(&uv.program);
        command.args(find);
        let python = process::run(command, |_| ()).await.unwrap().stdout.first().unwrap().clone();
        let environment = folder.path().join("environment");
        let site = environment.join("lib/python3.99/site-packages");
        for (name, source) in [
            ("module.py", "NAMES = frozenset({'a', 'b', 'c', 'd', 'e'})"),
            ("broken.py", "print 'of old'"),
            ("package/__init__.py", "from . import tests"),
            ("package/tests/__init__.py", "SLOW = True"),
        ] {
            fs::create_dir_all(site.join(name).parent().unwrap()).unwrap();
            fs::write(site.join(name), source).unwrap();
        }
        fs::create_dir_all(environment.join("bin")).unwrap();
        std::os::unix::fs::symlink(python, environment.join("bin/python")).unwrap();
        more(&environment);
        let home = Path::new("/opt/home");
        let log = BuildLog::new(folder.path().join("log"));
        log.begin();
        let modules = Modules { environment: &environment, with_library: false, home, kept };
        modules.compile(&uv, &log).await.unwrap();
        let said = log.subscribe().0.pop().unwrap();
        (folder.keep(), said)
    }

    /// The bytecode under a folder, by the path below it.
    fn bytecode(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if entry.path().extension().is_some_and(|extension| extension == "pyc") {
                    let name = entry.path().strip_prefix(folder).unwrap().to_owned();
                    found.insert(name, fs::read(entry.path()).unwrap());
                }
            }
        }
        found
    }

    #[tokio::test]
    async fn modules_are_compiled_once_for_all_environments_that_have_them() {
        let parent = tempfile::tempdir().unwrap();
        let kept = Kept::open(parent.path(), parent.path()).unwrap();
        let (first, said) = compiled(parent.path(), Some(&kept)).await;
        assert_eq!(said, "Bytecode compiled: 2 modules, 0 known before, 1 that this Python cannot compile");
        let all = bytecode(&first);
        assert_eq!(all.len(), 2, "tests of packages are left: {:?}", all.keys());
        for code in all.values() {
            assert_eq!(code[4..8], [1, 0, 0, 0], "it names no time: {code:?}");
            let names = |name: &[u8]| code.windows(name.len()).any(|part| part == name);
            assert!(
                names(b"/opt/home/lib/python3.99/site-packages/")
                    && !names(parent.path().as_os_str().as_encoded_bytes())
            );
        }
        let (second, said) = compiled(parent.path(), Some(&kept)).await;
        assert_eq!(said, "Bytecode compiled: 0 modules, 2 known before, 1 that this Python cannot compile");
        assert!(bytecode(&second) == all);
        // Another builder, which knows nothing, makes the same.
        let other = tempfile::tempdir().unwrap();
        let (third, _) = compiled(other.path(), Some(&Kept::open(other.path(), other.path()).unwrap())).await;
        assert!(bytecode(&third) == all);
    }

    #[tokio::test]
    async fn a_link_out_of_the_environment_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let kept = Kept::open(parent.path(), parent.path()).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("victim.py"), "x = 1").unwrap();
        let site = |environment: &Path| environment.join("lib/python3.99/site-packages");
        let hostile = |environment: &Path| {
            std::os::unix::fs::symlink(elsewhere.path(), site(environment).join("__pycache__")).unwrap();
            std::os::unix::fs::symlink(elsewhere.path().join("victim.py"), site(environment).join("link.py")).unwrap();
        };
        for kept in [Some(&kept), None] {
            let (_folder, said) = compiled_with(parent.path(), kept, hostile).await;
            assert!(said.starts_with("Bytecode compiled: 2 modules"), "{said}");
            assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1, "nothing was written there");
        }
    }

    #[test]
    fn a_part_that_ended_early_is_a_failure_with_its_reason() {
        let ended = |said: &str| Ended {
            status: std::os::unix::process::ExitStatusExt::from_raw(256),
            stdout: Vec::new(),
            stderr: vec![said.to_owned()],
        };
        let full = unfinished(Path::new("/e"), &ended("OSError: [Errno 28] No space left on device: '/e/x.pyc.7'"));
        assert!(full.cause.contains("no space is left") && full.remedy.contains("free some space"), "{full:?}");
        let other = unfinished(Path::new("/e"), &ended("MemoryError: "));
        assert!(other.cause.ends_with("MemoryError: "), "{other:?}");
    }

    #[tokio::test]
    async fn where_nothing_is_kept_a_module_that_changes_is_compiled_again_by_python() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, said) = compiled(parent.path(), None).await;
        assert!(said.starts_with("Bytecode compiled: 2 modules, 0 known"), "{said}");
        assert!(bytecode(&folder).values().all(|code| code[4..8] == [0; 4]), "it names the time of its source");
    }

    #[test]
    fn the_log_says_what_was_compiled_and_what_could_not() {
        let lines = ["10 2 0", "11 3 1"].map(str::to_owned);
        let whole = "Bytecode compiled: 21 modules, 5 known before";
        assert_eq!(said(&lines[..1]), "Bytecode compiled: 10 modules, 2 known before");
        assert_eq!(said(&lines), format!("{whole}, 1 that this Python cannot compile"));
    }
}
