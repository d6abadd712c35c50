//! What is attached to an image: which packages are in it (CycloneDX), and what it was made from (in-toto, SLSA).
//!
//! Both say no time and no name of a machine, so that an equal image has equal ones. How they are attached: OCI distribution 1.1, referrers.

use oci_distribution::{
    Reference,
    manifest::{ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor},
};
use proto::id::EnvironmentHash;
use serde_json::{Value, json};

use super::registry::{Error, Registries, describe};
use crate::identity::Fact;

/// The type of a list of packages.
pub(crate) const SBOM: &str = "application/vnd.cyclonedx+json";
/// The type of a statement of origin.
pub(crate) const PROVENANCE: &str = "application/vnd.in-toto+json";

/// The empty configuration that an artifact has.
const EMPTY: (&str, &[u8]) = ("application/vnd.oci.empty.v1+json", b"{}");

/// The packages of a lock file, as CycloneDX 1.5 lists them.
pub(crate) fn sbom(environment: &EnvironmentHash, lock: &str) -> Value {
    let components: Vec<_> = packages(lock)
        .into_iter()
        .map(|(name, version, hashes)| {
            let purl = format!("pkg:pypi/{name}@{version}");
            let mut component =
                json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl });
            // One hash is that of the file; several are those of all files of the release, of which one was taken.
            if let [hash] = hashes.as_slice() {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
            }
            component
        })
        .collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": { "type": "container", "name": "kaai environment", "version": environment },
            "tools": [{ "name": "kaai-builder", "version": env!("CARGO_PKG_VERSION") }],
        },
        "components": components,
    })
}

/// Name, version and SHA-256 digests of each package that a lock file pins.
fn packages(lock: &str) -> Vec<(String, String, Vec<String>)> {
    let mut packages: Vec<(String, String, Vec<String>)> = Vec::new();
    for line in lock.lines() {
        let line = line.trim().trim_end_matches('\\').trim_end();
        if let Some(hash) = line.strip_prefix("--hash=sha256:") {
            if let Some((_, _, hashes)) = packages.last_mut() {
                hashes.push(hash.to_owned());
            }
        } else if let Some((name, version)) = line.split(';').next().and_then(|pin| pin.split_once("==")) {
            packages.push((name.trim().to_owned(), version.trim().to_owned(), Vec::new()));
        } else if let Some((name, address)) = line.split_once(" @ ") {
            packages.push((name.trim().to_owned(), address.trim().to_owned(), Vec::new()));
        }
    }
    packages
}

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

/// Attaches documents to an image; where the registry does not keep the list of what is attached itself, under the tag of old as well.
pub(crate) async fn attach(
    registries: &Registries,
    image: &Reference,
    subject: &OciDescriptor,
    documents: &[(&str, Value)],
) -> Result<(), Error> {
    let at = |digest: &str| image.clone_with_digest(digest.to_owned());
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
        })
        .to_string()
        .into_bytes();
        let described = describe(OCI_IMAGE_MEDIA_TYPE, &manifest);
        registries.push_manifest(&at(&described.digest), OCI_IMAGE_MEDIA_TYPE, manifest).await?;
        entries.push(ImageIndexEntry {
            media_type: described.media_type,
            digest: described.digest,
            size: described.size,
            platform: None,
            annotations: None,
            artifact_type: Some((*kind).to_owned()),
        });
    }
    let mut index = registries.referrers(&at(&subject.digest)).await?;
    entries.retain(|entry| !index.manifests.iter().any(|known| known.digest == entry.digest));
    if entries.is_empty() {
        return Ok(());
    }
    index.manifests.extend(entries);
    index.media_type = Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned());
    let tag = subject.digest.replace(':', "-");
    let tag = Reference::with_tag(image.registry().to_owned(), image.repository().to_owned(), tag);
    let bytes = serde_json::to_vec(&index).unwrap_or_default();
    registries.push_manifest(&tag, OCI_IMAGE_INDEX_MEDIA_TYPE, bytes).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "numpy==2.4.6 ; python_version >= '3.11' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\njoblib==1.5.2 \\\n    --hash=sha256:cc\ny @ https://host/y.zip \\\n    --hash=sha256:dd\n";

    #[test]
    fn packages_are_listed_with_their_versions() {
        let hash = EnvironmentHash::from_sha256([7; 32]);
        let sbom = sbom(&hash, LOCK);
        let names: Vec<_> =
            sbom["components"].as_array().unwrap().iter().map(|one| one["purl"].as_str().unwrap()).collect();
        assert_eq!(names, ["pkg:pypi/numpy@2.4.6", "pkg:pypi/joblib@1.5.2", "pkg:pypi/y@https://host/y.zip"]);
        assert!(sbom["components"][0].get("hashes").is_none(), "which of the files it was is not known");
        assert_eq!(sbom["components"][1]["hashes"][0]["content"], "cc");
        assert_eq!(sbom["metadata"]["component"]["version"], hash.as_str());
    }

    #[test]
    fn an_origin_says_what_was_hashed() {
        let facts = [Fact { path: "python".to_owned(), value: "3.11.*".to_owned() }];
        let hash = EnvironmentHash::from_sha256([7; 32]);
        let said = provenance("sha256:aa", &hash, &facts, ("r/python@sha256:bb", "sha256:bb"));
        assert_eq!(said["subject"][0]["digest"]["sha256"], "aa");
        assert_eq!(said["predicate"]["buildDefinition"]["externalParameters"]["facts"]["python"], "3.11.*");
        assert_eq!(said["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["sha256"], "bb");
    }
}
