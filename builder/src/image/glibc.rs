//! Which C library an image has: conda packages stand on glibc, and each says which version it needs at least.

use std::{io, path::Path};

use flate2::read::MultiGzDecoder;
use futures::TryStreamExt;
use oci_distribution::manifest::OciDescriptor;
use proto::failure::{Failure, Stage};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{
    base::{Base, remember},
    registry::{Error, Registries},
};

/// The library is smaller than this.
const LARGEST: u64 = 1 << 24;
/// What stands in it before its version.
const BANNER: &[u8] = b"stable release version ";

impl Base {
    /// The version of its glibc, 2.36 for example: looked for in all layers once, and remembered in `cache` under the image's digest.
    pub(super) async fn glibc(&self, registries: &Registries, cache: &Path) -> Result<Option<String>, Error> {
        let known = cache.join(format!("{}.glibc.json", self.digest().trim_start_matches("sha256:")));
        if let Some(glibc) = std::fs::read(&known).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(glibc);
        }
        let mut found = None;
        for layer in &self.manifest.layers {
            found = self.glibc_of(registries, layer).await?.or(found);
        }
        // What is not remembered is looked for again.
        if let Err(error) = remember(&known, &found) {
            tracing::debug!(%error, "the glibc of a base image is not remembered");
        }
        Ok(found)
    }

    async fn glibc_of(&self, registries: &Registries, layer: &OciDescriptor) -> Result<Option<String>, Error> {
        let damaged = |why: String| Error::Damaged { what: self.reference.whole(), why };
        if layer.media_type.ends_with("zstd") {
            return Err(damaged("a layer is compressed with zstd, in which glibc cannot be looked for".to_owned()));
        }
        let zipped = layer.media_type.ends_with("gzip");
        let stream = registries.blob(&self.reference, layer).await?;
        let reader = SyncIoBridge::new(StreamReader::new(Box::pin(stream.map_err(io::Error::other))));
        let reading = tokio::task::spawn_blocking(move || match zipped {
            true => look(MultiGzDecoder::new(reader)),
            false => look(reader),
        });
        let looked = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        looked.map_err(|error| damaged(format!("a layer cannot be read: {error}")))
    }
}

/// A base image that conda packages cannot run on.
pub(super) fn without_glibc(base: &Base) -> Failure {
    Failure::project(
        Stage::Building,
        format!("the base image {} has no glibc, which conda packages need", base.reference.whole()),
        "choose a base image of a distribution that has it (Debian, Ubuntu, Red Hat; not Alpine), or leave baseImage out",
    )
}

fn look(reader: impl io::Read) -> io::Result<Option<String>> {
    let mut archive = tar::Archive::new(reader);
    let mut found = None;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = path.rsplit('/').next().unwrap_or(&path);
        // One for another system, a compiler's for example, lies elsewhere.
        let of_system = ["lib", "usr/lib"].iter().any(|parent| path.trim_start_matches("./").starts_with(parent));
        let library = name == "libc.so.6" || name.starts_with("libc-2.") && name.ends_with(".so");
        // The one of 32 bits that stands beside it in some images is of the same version.
        if of_system && library && entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(&mut entry, LARGEST), &mut content)?;
            found = version(&content).or(found);
        }
    }
    // The rest is read as well, since only at its end is it known to be what its digest says.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(found)
}

fn version(content: &[u8]) -> Option<String> {
    let at = content.windows(BANNER.len()).position(|window| window == BANNER)? + BANNER.len();
    let version: String =
        content[at..].iter().map(|byte| char::from(*byte)).take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn the_version_is_read_from_the_library() {
        let banner = b"\0\0GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\nCopyright\0";
        let library = ("usr/lib/x86_64-linux-gnu/libc.so.6", banner.as_slice());
        assert_eq!(
            look(layer(&[("bin/x", b"stable release version 9"), library]).as_slice()).unwrap().unwrap(),
            "2.36"
        );
        let old = layer(&[("lib/x86_64-linux-gnu/libc-2.31.so", b"stable release version 2.31.\n")]);
        assert_eq!(look(old.as_slice()).unwrap().unwrap(), "2.31");
        let cross = ("usr/aarch64-linux-gnu/lib/libc.so.6", b"stable release version 2.99.\n".as_slice());
        assert_eq!(look(layer(&[library, cross]).as_slice()).unwrap().unwrap(), "2.36", "another system's");
        assert_eq!(look(layer(&[("lib/ld-musl-x86_64.so.1", banner)]).as_slice()).unwrap(), None);
    }
}
