//! Packages in a prefix.

use std::{fs, io, path::Path};

use rattler::{
    install::{ExternalSymlinkPolicy, Installer, InstallerError},
    package_cache::PackageCache,
};

use crate::{
    channels,
    failure::{Failure, sentence},
    lock::Lock,
    progress::{Fetching, line},
    request::Request,
};

/// What a record of an installed package says of this machine and this moment.
const OF_THE_MOMENT: [&str; 3] = ["extracted_package_dir", "package_tarball_full_path", "link"];

/// Fetches the packages of a lock and links them into the prefix. Scripts that packages bring for the installation are not run.
pub(crate) async fn install(request: &Request, lock: &Lock) -> Result<(), Failure> {
    let Some(prefix) = &request.prefix else {
        return Err(Failure::Request("no prefix is named to install into".to_owned()));
    };
    let mut installer = Installer::new()
        .with_target_platform(lock.platform)
        .with_package_cache(PackageCache::new(request.cache.join("packages")))
        // A package has no business outside its prefix.
        .with_external_symlink_policy(ExternalSymlinkPolicy::Deny)
        .with_download_client(channels::client(request)?)
        .with_reporter(Fetching::default());
    if let Some(target) = &request.final_prefix {
        installer.set_alternative_target_prefix(target);
    }
    let installed = installer.install(prefix, lock.packages.iter().cloned()).await;
    installed.map_err(|error| told(&error))?;
    settle(&prefix.join("conda-meta")).map_err(|error| Failure::file(prefix, &error))?;
    line(&format!("Installed {} packages", lock.packages.len()));
    Ok(())
}

fn told(error: &InstallerError) -> Failure {
    match (error, Failure::of(&sentence(error))) {
        (InstallerError::FailedToFetch(package, _), Failure::Damaged(why)) => {
            Failure::Damaged(format!("{package} is not what its channel says it is: {why}"))
        }
        // What came whole and cannot be unpacked is no better.
        (InstallerError::FailedToFetch(package, _), Failure::Other(why)) if !why.contains("(os error ") => {
            Failure::Damaged(format!("{package} cannot be unpacked: {why}"))
        }
        (_, failure) => failure,
    }
}

/// Takes out of the records what differs from one installation to the next.
fn settle(records: &Path) -> io::Result<()> {
    for entry in fs::read_dir(records)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        if let Some(record) = record.as_object_mut() {
            OF_THE_MOMENT.iter().for_each(|key| drop(record.remove(*key)));
        }
        fs::write(&path, serde_json::to_vec_pretty(&record)?)?;
    }
    Ok(())
}
