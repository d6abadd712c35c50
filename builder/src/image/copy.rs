//! An image of one registry brought into another, byte for byte, so that it keeps its digest.

use futures::{StreamExt, TryStreamExt, stream};
use oci_distribution::{
    Reference,
    manifest::{OCI_IMAGE_MEDIA_TYPE, OciImageManifest},
};

use super::{
    attest,
    registry::{Error, Registries},
};

/// How many blobs are on their way at a time.
const AT_A_TIME: usize = 4;

/// An image that was copied and has no tag yet.
pub(crate) struct Copied {
    /// The copy.
    pub(crate) by_digest: Reference,
    kind: String,
    manifest: Vec<u8>,
}

/// Copies an image and what is attached to it. What the other registry has already is not sent.
///
/// # Errors
///
/// Fails when either registry does; then the other has no more than what no tag names.
pub(crate) async fn copy(registries: &Registries, from: &Reference, to: &Reference) -> Result<Copied, Error> {
    let missing = || Error::Missing(from.whole());
    let (bytes, digest) = registries.manifest_bytes(from).await?.ok_or_else(missing)?;
    let manifest: OciImageManifest = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Damaged { what: from.whole(), why: format!("its manifest is none: {error}") })?;
    blobs(registries, from, to, &manifest).await?;
    let kind = manifest.media_type.unwrap_or_else(|| OCI_IMAGE_MEDIA_TYPE.to_owned());
    let by_digest = to.clone_with_digest(digest.clone());
    let pushed = registries.push_manifest(&by_digest, &kind, bytes.to_vec()).await?;
    if pushed != digest {
        return Err(Error::Damaged { what: from.whole(), why: format!("its digest is {pushed}, not {digest}") });
    }
    attest::copy(registries, &from.clone_with_digest(digest), &by_digest).await?;
    Ok(Copied { by_digest, kind, manifest: bytes.to_vec() })
}

impl Copied {
    /// Gives the copy its tag, by which it is found from now on.
    pub(crate) async fn tag(self, registries: &Registries, tag: &Reference) -> Result<(), Error> {
        registries.push_manifest(tag, &self.kind, self.manifest).await.map(drop)
    }
}

/// Has all blobs of an image in another's repository.
pub(crate) async fn blobs(
    registries: &Registries,
    from: &Reference,
    to: &Reference,
    manifest: &OciImageManifest,
) -> Result<(), Error> {
    let all: Vec<_> = manifest.layers.iter().chain([&manifest.config]).cloned().collect();
    let copying = stream::iter(all).map(|blob| async move { registries.copy_blob(from, to, &blob).await });
    copying.buffer_unordered(AT_A_TIME).try_collect().await
}
