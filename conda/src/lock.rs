//! The lock: which packages were chosen, from where, with which hashes.

use std::{fs, path::Path};

use rattler_conda_types::{RepoDataRecord, Subdir};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;

/// The form of the file.
const VERSION: u32 = 1;

/// What is installed, in the order of names.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Lock {
    version: u32,
    pub(crate) platform: Subdir,
    pub(crate) packages: Vec<RepoDataRecord>,
}

impl Lock {
    pub(crate) fn new(platform: Subdir, mut packages: Vec<RepoDataRecord>) -> Self {
        packages.sort_by(|one, two| one.package_record.name.cmp(&two.package_record.name));
        Self { version: VERSION, platform, packages }
    }

    /// Reads a lock.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = fs::read(path).map_err(|error| Failure::file(path, &error))?;
        let wrong = |why: String| Failure::Request(format!("{} is no lock: {why}", path.display()));
        let lock: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if lock.version != VERSION {
            return Err(wrong(format!("its form is {}, and {VERSION} is understood", lock.version)));
        }
        Ok(lock)
    }

    /// Writes it whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Failure::Other(error.to_string()))?;
        let partial = path.with_extension("partial");
        let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
        written.map_err(|error| Failure::file(path, &error))
    }

    /// The packages in a few words each.
    pub(crate) fn short(&self) -> Vec<Value> {
        let hash = |record: &RepoDataRecord| {
            let own = &record.package_record;
            let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
            let value = serde_json::to_value(own).unwrap_or_default();
            match own.sha256.is_some() {
                true => format!("sha256:{}", text(value["sha256"].clone())),
                false => format!("md5:{}", text(value["md5"].clone())),
            }
        };
        let short = |record: &RepoDataRecord| {
            let own = &record.package_record;
            json!({
                "name": own.name.as_normalized(),
                "version": own.version.as_str(),
                "build": own.build,
                "channel": record.channel,
                "url": record.url,
                "hash": hash(record),
            })
        };
        self.packages.iter().map(short).collect()
    }
}
