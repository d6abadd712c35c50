//! What is attached to an image: which packages are in it (CycloneDX), what it was made from (in-toto, SLSA), and what a scanner said of it.
//!
//! The first two say no time and no name of a machine, so that an equal image has equal ones. How they are attached: OCI distribution 1.1, referrers.

use oci_distribution::{
    Reference,
    manifest::{ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciImageManifest},
};
use proto::{builder::Scan, id::EnvironmentHash};
use serde_json::{Value, json};

use super::registry::{Error, Registries, describe};
use crate::identity::Fact;

/// The type of a list of packages.
pub(crate) const SBOM: &str = "application/vnd.cyclonedx+json";
/// The type of a statement of origin.
pub(crate) const PROVENANCE: &str = "application/vnd.in-toto+json";

/// The type of what a scanner said.
pub(crate) const SCAN: &str = "application/vnd.kaai.scan.v1+json";

/// The empty configuration that an artifact has.
const EMPTY: (&str, &[u8]) = ("application/vnd.oci.empty.v1+json", b"{}");

/// What an image was made from: the facts that were hashed, the base image's digest, and which builder made it.
pub(crate) fn provenance(image: &str, environment: &EnvironmentHash, facts: &[Fact], base: (&str, &str)) -> Value {
    let facts: serde_json::Map<_, _> =
        facts.iter().map(|fact| (fact.path.clone(), Value::from(fact.value.as_str()))).collect();
    let (name, digest) = base;
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": format!("kaai environment {environment}"), "digest": { "sha256": hexadecimal(image) } }],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://kaai.dev/environment/v1",
                "externalParameters": { "environment": environment, "facts": facts },
                "resolvedDependencies": [{ "uri": format!("oci://{name}"), "digest": { "sha256": hexadecimal(digest) } }],
            },
            "runDetails": { "builder": { "id": concat!("kaai-builder/", env!("CARGO_PKG_VERSION")) } },
        },
    })
}

fn hexadecimal(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// The largest report that is attached: written as JSON it stays within what is read of a document again.
const LARGEST_REPORT: usize = 1 << 20;

/// What a scanner said, with its whole report unless that is too large; the object store has it in any case.
pub(crate) fn scan_result(scan: &Scan, report: &[u8]) -> Value {
    let attached = (report.len() <= LARGEST_REPORT).then(|| String::from_utf8_lossy(report));
    json!({ "scan": scan, "report": attached })
}

/// The scan that a [`scan_result`] tells of.
pub(crate) fn scan_of(result: &[u8]) -> Option<Scan> {
    let result: Value = serde_json::from_slice(result).ok()?;
    serde_json::from_value(result["scan"].clone()).ok()
}

/// Attaches documents to an image; where the registry does not keep the list of what is attached itself, under the tag of old as well.
pub(crate) async fn attach(
    registries: &Registries,
    image: &Reference,
    documents: &[(&str, Value)],
) -> Result<(), Error> {
    let subject = registries.described(image).await?;
    let config = registries.push_bytes(image, EMPTY.0, EMPTY.1).await?;
    let mut entries = Vec::new();
    for (kind, document) in documents {
        let blob = registries.push_bytes(image, kind, document.to_string().as_bytes()).await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "artifactType": kind,
            "config": config,
            "layers": [blob],
            "subject": subject,
        });
        entries.push((*kind, manifest.to_string().into_bytes()));
    }
    attach_manifests(registries, image, entries).await
}

/// Has what is attached to one image attached to its copy, but for scans: whoever copies an image judges it himself.
pub(super) async fn copy(registries: &Registries, from: &Reference, to: &Reference) -> Result<(), Error> {
    let mut entries = Vec::new();
    let attached = registries.referrers(from).await?.manifests;
    for attached in attached.into_iter().filter(|attached| attached.artifact_type.as_deref() != Some(SCAN)) {
        let at = from.clone_with_digest(attached.digest.clone());
        let Some((bytes, _)) = registries.manifest_bytes(&at).await? else { continue };
        let Ok(manifest) = serde_json::from_slice::<OciImageManifest>(&bytes) else { continue };
        super::copy::blobs(registries, &at, to, &manifest).await?;
        entries.push((attached.artifact_type.unwrap_or_default(), bytes.to_vec()));
    }
    attach_manifests(registries, to, entries).await
}

/// Pushes manifests that name an image as their subject, and lists them under its tag of old.
async fn attach_manifests<K: Into<String>>(
    registries: &Registries,
    image: &Reference,
    manifests: Vec<(K, Vec<u8>)>,
) -> Result<(), Error> {
    let mut entries = Vec::new();
    for (kind, manifest) in manifests {
        let described = describe(OCI_IMAGE_MEDIA_TYPE, &manifest);
        let at = image.clone_with_digest(described.digest.clone());
        registries.push_manifest(&at, OCI_IMAGE_MEDIA_TYPE, manifest).await?;
        entries.push(ImageIndexEntry {
            media_type: described.media_type,
            digest: described.digest,
            size: described.size,
            platform: None,
            annotations: None,
            artifact_type: Some(kind.into()),
        });
    }
    let mut index = registries.referrers(image).await?;
    entries.retain(|entry| !index.manifests.iter().any(|known| known.digest == entry.digest));
    if entries.is_empty() {
        return Ok(());
    }
    index.manifests.extend(entries);
    index.media_type = Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned());
    let tag = image.digest().unwrap_or_default().replace(':', "-");
    let tag = Reference::with_tag(image.registry().to_owned(), image.repository().to_owned(), tag);
    let bytes = serde_json::to_vec(&index).unwrap_or_default();
    registries.push_manifest(&tag, OCI_IMAGE_INDEX_MEDIA_TYPE, bytes).await.map(drop)
}

/// What is attached to an image of one kind, in the order in which it came.
pub(crate) async fn attached(registries: &Registries, image: &Reference, kind: &str) -> Result<Vec<Vec<u8>>, Error> {
    let mut documents = Vec::new();
    for entry in registries.referrers(image).await?.manifests {
        if entry.artifact_type.as_deref() != Some(kind) {
            continue;
        }
        let at = image.clone_with_digest(entry.digest);
        let (manifest, _) = registries.manifest(&at).await?;
        if let Some(blob) = manifest.layers.first() {
            documents.push(registries.small_blob(&at, blob).await?);
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_says_what_was_hashed() {
        let facts = [Fact { path: "python".to_owned(), value: "3.11.*".to_owned() }];
        let hash = EnvironmentHash::from_sha256([7; 32]);
        let said = provenance("sha256:aa", &hash, &facts, ("r/python@sha256:bb", "sha256:bb"));
        assert_eq!(said["subject"][0]["digest"]["sha256"], "aa");
        assert_eq!(said["predicate"]["buildDefinition"]["externalParameters"]["facts"]["python"], "3.11.*");
        assert_eq!(said["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["sha256"], "bb");
    }

    #[test]
    fn a_report_that_is_too_large_to_be_read_again_is_left_out_and_the_verdict_is_not() {
        let scan = Scan { command: "trivy {image}".into(), found: "2 low".into(), scanned: String::new() };
        // What JSON escapes most.
        for (length, there) in [(LARGEST_REPORT, true), (LARGEST_REPORT + 1, false)] {
            let result = scan_result(&scan, &vec![1; length]);
            assert_eq!(result["report"].is_string(), there);
            let bytes = result.to_string().into_bytes();
            assert!(bytes.len() < 8 << 20, "{}", bytes.len());
            assert_eq!(scan_of(&bytes), Some(scan.clone()));
        }
    }
}
