//! The list of an environment's packages, as CycloneDX: what a lock file says, in the words of those who look for weaknesses.
//!
//! It says no time and no name of a machine, so that equal environments have equal lists.

use proto::id::EnvironmentHash;
use serde_json::{Value, json};

use crate::conda_packages::CondaPackage;

/// The packages of a lock file and those of conda, as CycloneDX 1.5 lists them.
pub(crate) fn list(environment: &EnvironmentHash, lock: &str, conda: &[CondaPackage]) -> Value {
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
        .chain(conda.iter().map(of_conda))
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

fn of_conda(package: &CondaPackage) -> Value {
    let CondaPackage { name, version, build, channel, subdir, sha256 } = package;
    let mut qualifiers = url::form_urlencoded::Serializer::new(String::new());
    qualifiers.append_pair("build", build);
    if let Some(channel) = channel {
        qualifiers.append_pair("channel", channel);
    }
    qualifiers.append_pair("subdir", subdir);
    let purl = format!("pkg:conda/{name}@{version}?{}", qualifiers.finish());
    let mut component = json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl });
    if let Some(hash) = sha256 {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
    }
    component
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

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "numpy==2.4.6 ; python_version >= '3.11' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\njoblib==1.5.2 \\\n    --hash=sha256:cc\ny @ https://host/y.zip \\\n    --hash=sha256:dd\n";

    #[test]
    fn packages_are_listed_with_their_versions() {
        let hash = EnvironmentHash::from_sha256([7; 32]);
        let channel = Some("https://conda.anaconda.org/conda-forge/".to_owned());
        let libgomp = CondaPackage {
            name: "libgomp".to_owned(),
            version: "14.2.0".to_owned(),
            build: "h77fa898_1".to_owned(),
            channel,
            subdir: "linux-64".to_owned(),
            sha256: Some("ee".to_owned()),
        };
        let sbom = list(&hash, LOCK, &[libgomp]);
        let names: Vec<_> =
            sbom["components"].as_array().unwrap().iter().map(|one| one["purl"].as_str().unwrap()).collect();
        let conda = "pkg:conda/libgomp@14.2.0?build=h77fa898_1&channel=https%3A%2F%2Fconda.anaconda.org%2Fconda-forge%2F&subdir=linux-64";
        assert_eq!(names, ["pkg:pypi/numpy@2.4.6", "pkg:pypi/joblib@1.5.2", "pkg:pypi/y@https://host/y.zip", conda]);
        assert_eq!(sbom["components"][3]["hashes"][0]["content"], "ee");
        assert!(sbom["components"][0].get("hashes").is_none(), "which of the files it was is not known");
        assert_eq!(sbom["components"][1]["hashes"][0]["content"], "cc");
        assert_eq!(sbom["metadata"]["component"]["version"], hash.as_str());
    }
}
