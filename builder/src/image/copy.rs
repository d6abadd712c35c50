//! An image of one registry brought into another, byte for byte, so that it keeps its digest.

use futures::{StreamExt, TryStreamExt, stream};
use oci_distribution::{
    Reference,
    manifest::{OCI_IMAGE_MEDIA_TYPE, OciImageManifest},
};

use super::registry::{Error, Registries};

/// How many blobs are on their way at a time.
const AT_A_TIME: usize = 4;

/// Copies an image and returns its digest. What the other registry has already is not sent; the tag is written last.
///
/// # Errors
///
/// Fails when either registry does; then the other has no more than blobs that nothing names.
pub(crate) async fn copy(registries: &Registries, from: &Reference, to: &Reference) -> Result<String, Error> {
    let missing = || Error::Missing(from.whole());
    let (bytes, digest) = registries.manifest_bytes(from).await?.ok_or_else(missing)?;
    let manifest: OciImageManifest = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Damaged { what: from.whole(), why: format!("its manifest is none: {error}") })?;
    blobs(registries, from, to, &manifest).await?;
    let kind = manifest.media_type.as_deref().unwrap_or(OCI_IMAGE_MEDIA_TYPE);
    let pushed = registries.push_manifest(to, kind, bytes.to_vec()).await?;
    if pushed != digest {
        return Err(Error::Damaged { what: from.whole(), why: format!("its digest is {pushed}, not {digest}") });
    }
    Ok(digest)
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
