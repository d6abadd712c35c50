//! What became of an environment, in a user's words: how it was had, which registries were asked, what a scanner found.

use proto::builder::{Image, Lookup, RegistryAsked, RegistryOutcome, RegistryRole, Scan};

/// How an environment was had, and what each registry said that was asked for it.
pub(crate) fn had(lookup: Lookup, asked: &[RegistryAsked]) -> String {
    let how = match lookup {
        Lookup::Cached => "cached",
        Lookup::Copied => "copied",
        Lookup::Built => "built",
    };
    asked.iter().fold(how.to_owned(), |said, asked| format!("{said}, {}", registry(asked)))
}

/// What a scanner found.
pub(crate) fn scanned(scan: &Scan) -> String {
    format!("{} found {}", scan.scanner(), scan.found)
}

/// Where an environment is: its folder, or its image by digest.
pub(crate) fn place(image: &Image) -> &str {
    match image {
        Image::VirtualEnvironment { path, .. } => path,
        Image::Container { reference, .. } => reference,
    }
}

/// What a registry said when it was asked for an image.
fn registry(asked: &RegistryAsked) -> String {
    let which = match asked.registry {
        RegistryRole::Workspace => "workspace registry",
        RegistryRole::Global => "global registry",
    };
    match &asked.outcome {
        RegistryOutcome::Found => format!("the {which} had it"),
        RegistryOutcome::Missing => format!("the {which} had none"),
        RegistryOutcome::Unavailable(why) => format!("the {which} was left out: {why}"),
    }
}
