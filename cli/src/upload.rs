//! Sending archives to a packager that sees only the bus: by a ticket, in pieces, only what is not there yet.

use std::{fs::File, os::unix::fs::FileExt, path::Path, time::Duration};

use packager::{
    archive, not_packed,
    project::{Project, models::NamedModel},
    root_entry,
    upload::{piece_count, piece_length, piece_name},
    walk::{Links, Walk},
};
use proto::{
    packager::{Archive, DeploymentRequested, ModelVersion, ProjectOptions, Sealed, Source},
    query::{ListModels, RegisterModel, UploadDone, UploadRoute, UploadTicket},
    spec::ModelRef,
    subject,
};
use runtime::sealing;
use serde::Serialize;
use tempfile::TempDir;

use crate::{
    connection::{ASK, Connection},
    ending::{Ending, Result},
    output::{self, Format, Stages},
};

/// How long the packager may take to check and store what was sent.
const CHECK: Duration = Duration::from_secs(600);

/// Sends a project and its models, and gives the request that names them.
///
/// # Errors
///
/// Fails when files cannot be read or the packager does not take them.
pub async fn send(connection: &Connection, project: Project, format: Format) -> Result<DeploymentRequested> {
    let mut stages = Stages::new(format);
    for warning in &project.warnings {
        stages.done("warning", warning, None);
    }
    let mut spec = project.spec;
    for model in &project.models {
        let version = self::model(connection, model, true, &mut stages).await?;
        spec.models.push(ModelRef {
            name: model.name.clone(),
            version: version.version,
            digest: version.archive.digest,
        });
    }
    if !project.registered.is_empty() {
        let known = connection.bus.ask(connection.workspace(), &ListModels {}, ASK).await?;
        for (name, number) in &project.registered {
            let model = known.iter().find(|model| model.name == *name);
            let found = model.and_then(|model| model.versions.iter().find(|version| version.version == *number));
            let found = found.ok_or_else(|| {
                Ending::mend(format!("there is no model {name}:{number}"), "`kaai models list` lists them")
            })?;
            spec.models.push(ModelRef { name: name.clone(), version: *number, digest: found.archive.digest.clone() });
        }
    }
    let sealed_keys = sealed(connection, project.keys.as_ref(), subject::DEPLOYER_KEY).await?;
    let sealed_login = sealed(connection, project.login.as_ref(), subject::BUILDER_KEY).await?;
    let packed = Packed::write(project.files).await?;
    packed.upload(connection, "sending", &mut stages).await?;
    Ok(DeploymentRequested {
        source: Source::Upload(packed.archive.digest.clone()),
        spec: Some(spec),
        options: ProjectOptions::default(),
        sealed_keys,
        sealed_login,
        extra: serde_json::Map::new(),
    })
}

/// Sends a model's files and registers them.
///
/// # Errors
///
/// Fails when files cannot be read or the packager does not take them.
pub async fn model(
    connection: &Connection,
    model: &NamedModel,
    reuse: bool,
    stages: &mut Stages,
) -> Result<ModelVersion> {
    let path = model.path.clone();
    let files = blocking(move || Walk::entry(&path, Links::Anywhere))
        .await?
        .map_err(|error| Ending::mend(format!("model {}: {error}", model.name), "give another path"))?;
    let entry = root_entry(&files);
    let packed = Packed::write(files).await?;
    packed.upload(connection, &format!("model {}", model.name), stages).await?;
    let query = RegisterModel {
        name: model.name.clone(),
        version: model.version,
        archive: packed.archive.clone(),
        entry,
        reuse,
    };
    Ok(connection.bus.ask(connection.workspace(), &query, ASK).await?)
}

/// A zip on this machine.
struct Packed {
    archive: Archive,
    folder: TempDir,
}

impl Packed {
    async fn write(files: Walk) -> Result<Self> {
        let place = std::env::temp_dir();
        let written =
            |source, folder: &Path| not_packed(archive::Error::Write { path: folder.join("archive.zip"), source });
        let folder = TempDir::new_in(&place).map_err(|error| written(error, &place))?;
        let zip = folder.path().join("archive.zip");
        let archive = blocking(move || archive::write(&files, &zip)).await?.map_err(|error| match error {
            // The folder in it is gone when the message is read.
            archive::Error::Write { source, .. } => written(source, &place),
            other => not_packed(other),
        })?;
        Ok(Self { archive, folder })
    }

    async fn upload(&self, connection: &Connection, what: &str, stages: &mut Stages) -> Result {
        let (digest, size) = (self.archive.digest.clone(), self.archive.size);
        let ticket = UploadTicket { digest: digest.clone(), size };
        let UploadRoute::Pieces { present, .. } = connection.bus.ask(connection.workspace(), &ticket, ASK).await?
        else {
            return Ok(());
        };
        let zip = File::open(self.folder.path().join("archive.zip"))
            .map_err(|error| Ending::platform(error.to_string(), "is the temporary folder being cleaned?"))?;
        let pieces = connection.bus.pieces(subject::UPLOADS).await?;
        let mut sent = 0;
        for number in 0..piece_count(size) {
            let length = piece_length(size, number);
            if !present.contains(&number) {
                let piece = read(&zip, u64::from(number) * runtime::pieces::PIECE, length)?;
                pieces.put(&piece_name(&digest, number), piece.into()).await?;
            }
            sent += length;
            stages.news(what, &format!("{} of {}", output::bytes(sent), output::bytes(size)));
        }
        Ok(connection.bus.ask(connection.workspace(), &UploadDone { digest, size }, CHECK).await?)
    }
}

fn read(zip: &File, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
    zip.read_exact_at(&mut piece, offset)
        .map_err(|error| Ending::platform(error.to_string(), "is the temporary folder being cleaned?"))?;
    Ok(piece)
}

/// A secret of the project's, encrypted to the component that is to read it.
async fn sealed<T: Serialize>(
    connection: &Connection,
    secret: Option<&T>,
    recipient: &'static str,
) -> Result<Option<Sealed>> {
    let Some(secret) = secret else { return Ok(None) };
    let component = recipient.split('.').next().unwrap_or(recipient);
    let facts = connection.bus.bucket::<String>(subject::FACTS).await?;
    let key = facts.get(recipient).await?.ok_or_else(|| {
        let remedy = format!("see that the {component} runs, then deploy again");
        Ending::platform(format!("no {component} has told its public key yet"), remedy)
    })?;
    let sealed = sealing::seal(secret, &key.value);
    sealed.map(Some).map_err(|error| Ending::platform(error.to_string(), format!("see that the {component} runs")))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let defect = |error| Ending::platform(format!("{error}"), "this is a defect of kaai; please report it");
    tokio::task::spawn_blocking(work).await.map_err(defect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_read_at_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"0123456789").unwrap();
        let zip = File::open(path).unwrap();
        assert_eq!(read(&zip, 3, 4).unwrap(), b"3456");
        assert!(read(&zip, 8, 4).is_err());
    }
}
