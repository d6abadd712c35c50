//! Small projects for tests, in v1's shape.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// A project in a temporary folder.
pub struct Project {
    folder: TempDir,
    name: String,
}

/// A conda file that needs nothing but the scoring server, so that its environment is built once and quickly.
pub const PLAIN_CONDA: &str = "dependencies:\n  - python=3.11\n  - pip:\n      - azureml-inference-server-http\n";

impl Project {
    /// A project whose `run()` answers what the request says and the text `version`.
    pub fn echo(name: &str, version: &str) -> Self {
        let project = Self { folder: TempDir::new().unwrap(), name: name.to_owned() };
        fs::create_dir(project.path()).unwrap();
        project
            .file("score.py", &Self::script(version))
            .file("environment.yml", PLAIN_CONDA)
            .file("inferenceconfig.json", r#"{"entryScript": "score.py", "runtime": "python", "condaFile": "environment.yml", "sourceDirectory": "."}"#)
            .deployment(r#""authEnabled": false, "numReplicas": 1"#)
    }

    /// A script whose `run()` sleeps as long as the request says, and answers with the text `version`.
    pub fn script(version: &str) -> String {
        format!(
            "import json, os, time\n\ndef init():\n    print('init of {version}')\n\n\
             def run(raw_data):\n    asked = json.loads(raw_data)\n    time.sleep(asked.get('sleep', 0))\n    \
             return {{'asked': asked, 'version': '{version}', 'pid': os.getpid()}}\n"
        )
    }

    /// Writes a file.
    #[must_use]
    pub fn file(self, name: &str, content: &str) -> Self {
        self.write(name, content);
        self
    }

    /// Writes a deployment configuration for AKS with these members.
    #[must_use]
    pub fn deployment(self, members: &str) -> Self {
        let comma = if members.is_empty() { "" } else { ", " };
        self.file("deploymentconfig.json", &format!(r#"{{"computeType": "aks"{comma}{members}}}"#))
    }

    /// Writes a file of a project that is in use.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Takes a file away.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path().join(name)).unwrap();
    }

    /// Its folder, whose name is the service's.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// Its folder as text.
    pub fn folder(&self) -> String {
        self.path().display().to_string()
    }

    /// The service's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
            let mut permissions = fs::metadata(&target).unwrap().permissions();
            #[expect(
                clippy::permissions_set_readonly_false,
                reason = "a test's own copy of a file that was read-only"
            )]
            permissions.set_readonly(false);
            fs::set_permissions(&target, permissions).unwrap();
        }
    }
}
