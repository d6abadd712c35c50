//! The models of a project: as named by the user, else as they lie in the folder by convention.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use proto::{
    failure::{Failure, Stage},
    id::{ModelName, ServiceName},
};

use super::place::Place;

/// A model whose files are to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedModel {
    /// The name.
    pub name: ModelName,
    /// The version wanted; the next one, or an equal newest one, when left out.
    pub version: Option<u32>,
    /// Its file or folder, as an absolute path.
    pub path: PathBuf,
}

impl NamedModel {
    /// A model of a name, `NAME` or `NAME:VERSION`, whose files are at `path`.
    ///
    /// A path laid out as v1 lays models out, `azureml-models/NAME/VERSION/ENTRY`, gives the version when the name does not.
    ///
    /// # Errors
    ///
    /// Fails when the name is not valid or the path does not exist.
    pub fn new(name: &str, path: &Path) -> Result<Self, Failure> {
        let (name, version) = split(name)?;
        let missing = |error: &dyn std::fmt::Display| {
            Failure::project(
                Stage::Reading,
                format!("the files of model {name} at {} cannot be read: {error}", path.display()),
                "give the path of a file or folder",
            )
        };
        let absolute = std::path::absolute(path).map_err(|error| missing(&error))?;
        fs::metadata(&absolute).map_err(|error| missing(&error))?;
        let version = version
            .or_else(|| laid_out(&absolute).filter(|(owner, _)| owner == name.as_str()).map(|(_, version)| version));
        Ok(Self { name, version, path: absolute })
    }
}

/// What a project says of its models.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Models {
    /// To be registered.
    pub(crate) named: Vec<NamedModel>,
    /// Registered before.
    pub(crate) registered: Vec<(ModelName, u32)>,
}

impl Models {
    /// Reads what the user said: `NAME:VERSION`, or `NAME[:VERSION]=PATH` with the path relative to the project's folder.
    pub(crate) fn said(texts: &[String], place: &Place) -> Result<Self, Failure> {
        let mut models = Self::default();
        for text in texts {
            match text.split_once('=') {
                Some((name, path)) => models.named.push(placed(name, &place.folder().join(path), place)?),
                None => match split(text)? {
                    (name, Some(version)) => models.registered.push((name, version)),
                    (name, None) => {
                        let remedy =
                            format!("write {name}:1 for a registered version, or {name}=PATH for files to register");
                        return Err(Failure::project(
                            Stage::Reading,
                            format!("model {name} has neither a version nor a path"),
                            remedy,
                        ));
                    }
                },
            }
        }
        Ok(models)
    }

    /// Finds models by convention: the newest version of each below `azureml-models/`, else each entry of `models/`.
    ///
    /// A single entry of `models/` is named after the service, several after their files: `a.pkl` is `a`, unless there is an `a.onnx` too.
    pub(crate) fn found(place: &Place, service: &ServiceName) -> Result<Self, Failure> {
        let mut models = Self::default();
        let folder = place.folder();
        let registry = folder.join("azureml-models");
        for owner in entries(&registry)? {
            let newest = entries(&owner)?
                .into_iter()
                .filter_map(|path| Some((file_name(&path).parse::<u32>().ok()?, path)))
                .max();
            let Some((_, version)) = newest else { continue };
            let inside = entries(&version)?;
            let [entry] = inside.as_slice() else {
                let cause =
                    format!("{} holds {} entries, where a model's version has one", version.display(), inside.len());
                return Err(Failure::project(
                    Stage::Reading,
                    cause,
                    "put the files into one folder, or leave models alone with --no-models",
                ));
            };
            models.named.push(placed(&file_name(&owner), entry, place)?);
        }
        if !models.named.is_empty() {
            return Ok(models);
        }
        let entries = entries(&folder.join("models"))?;
        let stems: Vec<String> = entries.iter().map(|entry| valid_name(&stem(entry))).collect();
        for (entry, name) in entries.iter().zip(&stems) {
            let unique = stems.iter().filter(|other| *other == name).count() == 1;
            let name = match (entries.len(), unique) {
                (1, _) => service.to_string(),
                (_, true) => name.clone(),
                (_, false) => valid_name(&file_name(entry)),
            };
            models.named.push(placed(&name, entry, place)?);
        }
        Ok(models)
    }
}

/// A model whose files the project may reach.
fn placed(name: &str, path: &Path, place: &Place) -> Result<NamedModel, Failure> {
    let shown = path.strip_prefix(place.folder()).unwrap_or(path);
    place.find(place.folder(), &shown.to_string_lossy(), &format!("the path of model {name},"))?;
    NamedModel::new(name, path)
}

/// `NAME` or `NAME:VERSION`.
fn split(text: &str) -> Result<(ModelName, Option<u32>), Failure> {
    let wrong = |cause: String| {
        Failure::project(Stage::Reading, cause, "write NAME:VERSION, or NAME=PATH, or NAME:VERSION=PATH")
    };
    let (name, version) = match text.split_once(':') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let name = name.parse().map_err(|error: proto::id::InvalidId| wrong(error.to_string()))?;
    let version = version
        .map(|version| {
            version
                .parse::<u32>()
                .ok()
                .filter(|version| *version > 0)
                .ok_or_else(|| wrong(format!("{version:?} is no version of a model")))
        })
        .transpose()?;
    Ok((name, version))
}

/// Name and version of a path that ends in `azureml-models/NAME/VERSION/ENTRY`.
fn laid_out(path: &Path) -> Option<(String, u32)> {
    let mut parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let (_entry, version, name) = (parts.next()?, parts.next()?, parts.next()?);
    (parts.next()? == "azureml-models").then_some(())?;
    Some((name.to_owned(), version.parse().ok().filter(|version| *version > 0)?))
}

/// The visible entries of a folder, sorted; none when there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let unreadable = |error: std::io::Error| {
        Failure::project(
            Stage::Reading,
            format!("{} cannot be read: {error}", folder.display()),
            "see that you may read it",
        )
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = file_name(&path);
        if !name.starts_with('.') && name != "__pycache__" && !name.eq_ignore_ascii_case("README.md") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A file's name without its ending; a folder's name is kept whole.
fn stem(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// A text as a model's name.
fn valid_name(text: &str) -> String {
    let name: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' }).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "model".to_owned() } else { name.chars().take(255).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walk::Links;

    fn place(folder: &Path) -> Place {
        Place::new(folder, Links::Anywhere).unwrap()
    }

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        folder
    }

    fn found(folder: &Path) -> Vec<(String, Option<u32>, String)> {
        let models = Models::found(&place(folder), &"svc".parse().unwrap()).unwrap();
        models.named.into_iter().map(|model| (model.name.to_string(), model.version, file_name(&model.path))).collect()
    }

    #[test]
    fn what_the_user_says_counts_as_v1_reads_it() {
        let folder = folder(&["w.bin", "azureml-models/scale/2/coefficients/x.json"]);
        let said = |texts: &[&str]| {
            Models::said(&texts.iter().map(ToString::to_string).collect::<Vec<_>>(), &place(folder.path()))
        };
        let models = said(&[
            "a:3",
            "b=w.bin",
            "c:7=w.bin",
            "scale=azureml-models/scale/2/coefficients",
            "other=azureml-models/scale/2/coefficients",
        ])
        .unwrap();
        assert_eq!(models.registered, [("a".parse().unwrap(), 3)]);
        let versions: Vec<_> = models.named.iter().map(|model| (model.name.as_str(), model.version)).collect();
        assert_eq!(versions, [("b", None), ("c", Some(7)), ("scale", Some(2)), ("other", None)]);
        for bad in ["a", "a:0", "a:x", "a b=w.bin", "a=no-such-file", ":1"] {
            assert!(said(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn models_are_found_where_they_lie_by_convention() {
        let v1 = folder(&[
            "azureml-models/offset/1/offset.json",
            "azureml-models/scale/1/old",
            "azureml-models/scale/2/new/x",
            "models/ignored",
        ]);
        let expected =
            [("offset".to_owned(), Some(1), "offset.json".to_owned()), ("scale".to_owned(), Some(2), "new".to_owned())];
        assert_eq!(found(v1.path()), expected);
        assert_eq!(
            found(folder(&["models/ridge.pkl", "models/.hidden"]).path()),
            [("svc".to_owned(), None, "ridge.pkl".to_owned())]
        );
        let several = found(folder(&["models/a b.pkl", "models/c/x", "models/c/y"]).path());
        assert_eq!(several, [("a-b".to_owned(), None, "a b.pkl".to_owned()), ("c".to_owned(), None, "c".to_owned())]);
        let alike = found(folder(&["models/a.pkl", "models/a.onnx"]).path());
        assert_eq!(alike.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["a.onnx", "a.pkl"]);
        assert!(found(folder(&["score.py"]).path()).is_empty());
    }

    #[test]
    fn a_project_from_elsewhere_registers_nothing_of_this_machine() {
        let folder = folder(&["secret", "project/models/m"]);
        let project = folder.path().join("project");
        let place = Place::new(&project, Links::Inside).unwrap();
        assert!(Models::said(&["m=../secret".to_owned()], &place).unwrap_err().cause.contains("outside"));
        std::os::unix::fs::symlink("../../secret", project.join("models/link")).unwrap();
        assert!(Models::found(&place, &"svc".parse().unwrap()).unwrap_err().cause.contains("outside"));
    }

    #[test]
    fn a_version_with_several_entries_is_refused() {
        let folder = folder(&["azureml-models/m/1/a", "azureml-models/m/1/b"]);
        assert!(Models::found(&place(folder.path()), &"svc".parse().unwrap()).unwrap_err().cause.contains("2 entries"));
    }
}
