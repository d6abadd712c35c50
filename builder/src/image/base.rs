//! Base images: what one is made of, and which Pythons lie in it.
//!
//! It knows manifests, configurations and layers. It does not know what is put on top.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use futures::TryStreamExt;
use oci_distribution::{
    Reference,
    manifest::{OciDescriptor, OciImageManifest},
};
use proto::failure::{Failure, Stage};
use serde_json::Value;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::registry::{Error, Registries};

/// An image that others stand on.
pub(crate) struct Base {
    /// Its name, by digest.
    pub(crate) reference: Reference,
    pub(crate) manifest: OciImageManifest,
    /// Its configuration, kept whole: what is not known here goes on into the new image.
    pub(crate) config: Value,
}

/// The Pythons of an image: minor of Python 3 → path of its interpreter, the one that the image's PATH names first.
pub(crate) type Pythons = BTreeMap<u64, String>;

impl Base {
    /// Fetches manifest and configuration.
    pub(crate) async fn fetch(registries: &Registries, reference: Reference) -> Result<Self, Error> {
        let (manifest, _) = registries.manifest(&reference).await?;
        let config = registries.small_blob(&reference, &manifest.config).await?;
        let damaged = |why: String| Error::Damaged { what: reference.whole(), why };
        let config = serde_json::from_slice(&config)
            .map_err(|error| damaged(format!("its configuration is no JSON: {error}")))?;
        if !is_configuration(&config) {
            return Err(damaged("its configuration is not in the form of an image's".to_owned()));
        }
        Ok(Self { reference, manifest, config })
    }

    /// The folders that its PATH names, in order.
    fn path(&self) -> Vec<String> {
        let named = self.variable("PATH");
        let path = named.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        path.split(':').map(|folder| folder.trim_matches('/').to_owned()).collect()
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let variables = self.config.pointer("/config/Env")?.as_array()?;
        variables.iter().filter_map(Value::as_str).find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Its Pythons: looked for in all layers once, and remembered in `cache` under the image's digest.
    ///
    /// The images that Docker calls official say theirs in a variable, so that nothing is fetched for them.
    pub(crate) async fn pythons(&self, registries: &Registries, cache: &Path) -> Result<Pythons, Error> {
        let official = |version: &str| Some((version.strip_prefix("3.")?.split('.').next()?.parse().ok()?, ()));
        if let Some((minor, ())) = self.variable("PYTHON_VERSION").and_then(official) {
            return Ok(Pythons::from([(minor, format!("/usr/local/bin/python3.{minor}"))]));
        }
        let known = cache.join(format!("{}.json", self.digest().trim_start_matches("sha256:")));
        if let Some(pythons) = std::fs::read(&known).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(pythons);
        }
        let mut found = Vec::new();
        for layer in &self.manifest.layers {
            found.extend(self.interpreters(registries, layer).await?);
        }
        let pythons = choose(found, &self.path());
        // What is not remembered is looked for again.
        if let Err(error) = remember(&known, &pythons) {
            tracing::debug!(%error, "the Pythons of a base image are not remembered");
        }
        Ok(pythons)
    }

    /// The paths in a layer that are called as an interpreter of Python 3 is.
    async fn interpreters(&self, registries: &Registries, layer: &OciDescriptor) -> Result<Vec<(u64, String)>, Error> {
        let damaged = |why: String| Error::Damaged { what: self.reference.whole(), why };
        if layer.media_type.ends_with("zstd") {
            return Err(damaged("a layer is compressed with zstd, in which Python cannot be looked for".to_owned()));
        }
        let zipped = layer.media_type.ends_with("gzip");
        let stream = registries.blob(&self.reference, layer).await?;
        let reader = SyncIoBridge::new(StreamReader::new(Box::pin(stream.map_err(io::Error::other))));
        let reading = tokio::task::spawn_blocking(move || match zipped {
            true => list(MultiGzDecoder::new(reader)),
            false => list(reader),
        });
        let listed = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        listed.map_err(|error| damaged(format!("a layer cannot be read: {error}")))
    }

    pub(crate) fn digest(&self) -> &str {
        self.reference.digest().unwrap_or_default()
    }
}

/// Whether a configuration has the form that is written to here: whoever made the image may have put anything into it.
fn is_configuration(config: &Value) -> bool {
    let at = |path: &str| config.pointer(path).unwrap_or(&Value::Null);
    let object = |path: &str| at(path).is_null() || at(path).is_object();
    let list = |path: &str| at(path).is_null() || at(path).is_array();
    let objects = ["/config", "/config/Labels", "/rootfs"].into_iter().all(object);
    config.is_object() && objects && ["/config/Env", "/rootfs/diff_ids", "/history"].into_iter().all(list)
}

/// A base image that has none of the Pythons that are wanted.
pub(crate) fn without_python(base: &Base, wanted: &[u64], pythons: &Pythons) -> Failure {
    let named = |minors: &mut dyn Iterator<Item = &u64>| {
        minors.map(|minor| format!("3.{minor}")).collect::<Vec<_>>().join(", ")
    };
    let has = match pythons.is_empty() {
        true => "no Python".to_owned(),
        false => format!("Python {}", named(&mut pythons.keys())),
    };
    Failure::project(
        Stage::Building,
        format!(
            "the base image {} has {has}, and Python {} is wanted",
            base.reference.whole(),
            named(&mut wanted.iter())
        ),
        "choose a base image with that Python, or leave baseImage out, which chooses one for the Python of the conda file",
    )
}

fn list(reader: impl io::Read) -> io::Result<Vec<(u64, String)>> {
    let mut archive = tar::Archive::new(reader);
    let mut found = Vec::new();
    for entry in archive.entries()? {
        let entry = entry?;
        let kind = entry.header().entry_type();
        let path = entry.path_bytes();
        let path = String::from_utf8_lossy(&path);
        let path = path.trim_start_matches("./").trim_start_matches('/');
        if (kind.is_file() || kind.is_symlink() || kind.is_hard_link())
            && let Some(minor) = path.rsplit_once("bin/python3.").and_then(|(_, minor)| minor.parse().ok())
        {
            found.push((minor, path.to_owned()));
        }
    }
    // The rest is read as well, since only at its end is it known to be what its digest says.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(found)
}

/// Of several interpreters of one minor, the one in the folder that PATH names first; else the one with the shortest path.
fn choose(found: Vec<(u64, String)>, path: &[String]) -> Pythons {
    let rank = |interpreter: &str| {
        let folder = interpreter.rsplit_once('/').map_or("", |(folder, _)| folder);
        (path.iter().position(|named| named == folder).unwrap_or(usize::MAX), interpreter.len())
    };
    let mut pythons = Pythons::new();
    for (minor, interpreter) in found {
        let better = pythons.get(&minor).is_none_or(|known| rank(&interpreter) < rank(known.trim_start_matches('/')));
        if better {
            pythons.insert(minor, format!("/{interpreter}"));
        }
    }
    pythons
}

pub(super) fn remember(file: &Path, known: &impl serde::Serialize) -> io::Result<()> {
    let folder = file.parent().map(PathBuf::from).unwrap_or_default();
    std::fs::create_dir_all(&folder)?;
    let temporary = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&temporary, known)?;
    temporary.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(paths: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for path in paths {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            tar.append_data(&mut header, path, io::empty()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn a_configuration_of_another_form_is_none() {
        let read = |text: &str| is_configuration(&serde_json::from_str(text).unwrap());
        assert!(read("{}") && read(r#"{"config": {"Labels": null, "Env": []}, "rootfs": {"diff_ids": []}}"#));
        for hostile in
            ["[]", r#"{"config": 1}"#, r#"{"config": {"Labels": "x"}}"#, r#"{"rootfs": []}"#, r#"{"history": {}}"#]
        {
            assert!(!read(hostile), "{hostile}");
        }
    }

    #[test]
    fn interpreters_are_found_by_their_names() {
        let tar = layer(&[
            "usr/bin/python3.11",
            "usr/bin/python3.11-config",
            "opt/miniconda/bin/python3.8",
            "usr/lib/python3.11/os.py",
            "usr/bin/python3",
        ]);
        let found = list(tar.as_slice()).unwrap();
        assert_eq!(found, [(11, "usr/bin/python3.11".to_owned()), (8, "opt/miniconda/bin/python3.8".to_owned())]);
        assert!(list(&tar[..700]).is_err(), "a layer that was cut is no layer");
    }

    #[test]
    fn the_path_decides_between_two_of_a_kind() {
        let found = || {
            ["opt/conda/bin/python3.8", "usr/bin/python3.8", "usr/bin/python3.6"]
                .map(|path| (path.rsplit_once('.').unwrap().1.parse().unwrap(), path.to_owned()))
        };
        let path = |text: &str| text.split(':').map(|folder| folder.trim_matches('/').to_owned()).collect::<Vec<_>>();
        assert_eq!(choose(found().into(), &path("/opt/conda/bin:/usr/bin"))[&8], "/opt/conda/bin/python3.8");
        assert_eq!(choose(found().into(), &path("/usr/bin:/opt/conda/bin"))[&8], "/usr/bin/python3.8");
        assert_eq!(choose(found().into(), &path("/sbin"))[&8], "/usr/bin/python3.8", "the shortest");
        assert_eq!(choose(found().into(), &path("/sbin"))[&6], "/usr/bin/python3.6");
    }
}
