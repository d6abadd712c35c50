//! Registered models: versions that count up from 1, each a set of files that never changes.

use proto::{
    id::{ModelName, Workspace},
    packager::{Model, ModelVersion},
    query::{Refusal, RegisterModel},
    subject,
};
use runtime::{
    bus::{self, Bucket, Bus},
    clock,
};

use crate::{
    shelf::{self, Shelf},
    trouble::{refused_by_shelf, unavailable},
};

/// The models of all workspaces.
#[derive(Clone)]
pub(crate) struct Registry {
    models: Bucket<Model>,
    shelf: Shelf,
}

/// A model could not be registered or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}", .0.cause)]
    Refused(Refusal),
    #[error(transparent)]
    Bus(#[from] bus::Error),
    #[error(transparent)]
    Shelf(#[from] shelf::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal,
            Error::Shelf(error) => refused_by_shelf(&error),
            Error::Bus(error) => unavailable(error.to_string(), "try again"),
        }
    }
}

impl Registry {
    pub(crate) async fn open(bus: &Bus, shelf: Shelf) -> Result<Self, bus::Error> {
        Ok(Self { models: bus.bucket(subject::MODELS).await?, shelf })
    }

    /// Registers a version. Asked again with the same answer wanted (`reuse`, or a version that has these very files), it changes nothing.
    pub(crate) async fn register(&self, workspace: &Workspace, wanted: &RegisterModel) -> Result<ModelVersion, Error> {
        if !self.shelf.has(&wanted.archive.digest, wanted.archive.size).await? {
            let cause = format!("the files of {} are not in the object store", wanted.name);
            return Err(Error::Refused(Refusal::new("invalid", cause, "send them first")));
        }
        let key = subject::model_key(workspace, &wanted.name);
        loop {
            let found = self.models.get(&key).await?;
            let revision = found.as_ref().map(|entry| entry.revision);
            let mut model = found.map(|entry| entry.value).unwrap_or_else(|| Model {
                name: wanted.name.clone(),
                versions: Vec::new(),
                extra: serde_json::Map::new(),
            });
            let version = match place(&model.versions, wanted).map_err(Error::Refused)? {
                Place::There(version) => return Ok(version),
                Place::New(number) => ModelVersion {
                    version: number,
                    archive: wanted.archive.clone(),
                    entry: wanted.entry.clone(),
                    created: clock::now_rfc3339(),
                },
            };
            model.versions.push(version.clone());
            model.versions.sort_by_key(|version| version.version);
            let written = match revision {
                None => self.models.create(&key, &model).await,
                Some(revision) => self.models.update(&key, &model, revision).await,
            };
            match written {
                Ok(_) => return Ok(version),
                // Somebody registered another version at the same time: look again.
                Err(bus::Error::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Finds a version of a model.
    pub(crate) async fn find(
        &self,
        workspace: &Workspace,
        name: &ModelName,
        version: u32,
    ) -> Result<ModelVersion, Error> {
        let entry = self.models.get(&subject::model_key(workspace, name)).await?;
        let versions = entry.map(|entry| entry.value.versions).unwrap_or_default();
        let known = versions.iter().map(|version| version.version.to_string()).collect::<Vec<_>>().join(", ");
        versions.into_iter().find(|there| there.version == version).ok_or_else(|| {
            let remedy = match known.is_empty() {
                true => format!("register it: kaai models register {name} PATH"),
                false => format!("its versions are {known}: kaai models list"),
            };
            Error::Refused(Refusal::new("not-found", format!("there is no model {name}:{version}"), remedy))
        })
    }

    /// All models of a workspace, by name.
    pub(crate) async fn list(&self, workspace: &Workspace) -> Result<Vec<Model>, Error> {
        let mut models = Vec::new();
        for key in self.models.keys().await? {
            let ours = subject::parse_model_key(&key).is_some_and(|(owner, _)| owner == *workspace);
            if let Some(entry) = if ours { self.models.get(&key).await? } else { None } {
                models.push(entry.value);
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }
}

/// Where a registration goes.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    There(ModelVersion),
    New(u32),
}

fn place(versions: &[ModelVersion], wanted: &RegisterModel) -> Result<Place, Refusal> {
    let same = |there: &ModelVersion| there.archive.digest == wanted.archive.digest && there.entry == wanted.entry;
    let newest = versions.iter().max_by_key(|there| there.version);
    let Some(number) = wanted.version else {
        return Ok(match newest {
            Some(newest) if wanted.reuse && same(newest) => Place::There(newest.clone()),
            _ => Place::New(newest.map_or(0, |newest| newest.version).saturating_add(1)),
        });
    };
    if number == 0 {
        return Err(Refusal::new("invalid", "the versions of a model count from 1", "give another version, or none"));
    }
    match versions.iter().find(|there| there.version == number) {
        Some(there) if same(there) => Ok(Place::There(there.clone())),
        Some(_) => {
            let cause = format!("{}:{number} has other files, and a version never changes", wanted.name);
            Err(Refusal::new("conflict", cause, "register the next version: leave the number out"))
        }
        None => Ok(Place::New(number)),
    }
}

#[cfg(test)]
mod tests {
    use proto::{id::Digest, packager::Archive};

    use super::*;

    fn archive(byte: u8) -> Archive {
        Archive { digest: Digest::from_sha256([byte; 32]), size: 1, files: 1, ignored: 0 }
    }

    fn there(version: u32, byte: u8) -> ModelVersion {
        ModelVersion { version, archive: archive(byte), entry: "m".into(), created: String::new() }
    }

    fn wanted(version: Option<u32>, byte: u8, reuse: bool) -> RegisterModel {
        RegisterModel { name: "m".parse().unwrap(), version, archive: archive(byte), entry: "m".into(), reuse }
    }

    #[test]
    fn versions_count_up_and_never_change() {
        let versions = [there(1, 1), there(3, 3)];
        assert_eq!(place(&[], &wanted(None, 1, true)), Ok(Place::New(1)));
        assert_eq!(
            place(&versions, &wanted(None, 3, false)),
            Ok(Place::New(4)),
            "registering again makes the next one"
        );
        assert_eq!(place(&versions, &wanted(None, 3, true)), Ok(Place::There(there(3, 3))));
        assert_eq!(place(&versions, &wanted(None, 1, true)), Ok(Place::New(4)), "only the newest is used again");
        assert_eq!(place(&versions, &wanted(Some(2), 9, false)), Ok(Place::New(2)));
        assert_eq!(place(&versions, &wanted(Some(1), 1, false)), Ok(Place::There(there(1, 1))));
        assert_eq!(place(&versions, &wanted(Some(1), 2, false)).unwrap_err().kind, "conflict");
        assert_eq!(place(&versions, &wanted(Some(0), 2, false)).unwrap_err().kind, "invalid");
    }
}
