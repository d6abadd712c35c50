//! The settings of the object store: as typed ([`StoreArgs`]) and as checked ([`StoreSettings`]).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use url::Url;

use super::credentials::Credentials;
use crate::store::{Address, Error};

/// How long a store's server may be silent within a request.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of the components that keep or read archives, models and logs.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Object store for archives, models and logs: a folder, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX
    #[arg(long, env = "KAAI_STORE", default_value = "/var/lib/kaai/store", value_name = "FOLDER or URL")]
    pub store: String,
    /// File with the credentials for the store, as lines KEY=VALUE or Google's JSON [default: AWS_, AZURE_ or GOOGLE_ variables, else the machine's own role]
    #[arg(long, env = "KAAI_STORE_CREDENTIALS", value_name = "FILE")]
    pub store_credentials: Option<PathBuf>,
    /// Address of the store's server, where it is not the cloud's own (http:// and https://)
    #[arg(long, env = "KAAI_STORE_ENDPOINT", value_name = "URL")]
    pub store_endpoint: Option<String>,
    /// Region of an S3 bucket [default: that of AWS_REGION, else us-east-1]
    #[arg(long, env = "KAAI_STORE_REGION", value_name = "REGION")]
    pub store_region: Option<String>,
    /// File with certificates (PEM) that the store's server is trusted by, besides those of the system
    #[arg(long, env = "KAAI_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Speak to the store's server without TLS though it is not on this machine
    #[arg(long, env = "KAAI_STORE_PLAIN_HTTP")]
    pub store_plain_http: bool,
}

/// Where the object store is and how it is reached.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// A folder, or a bucket of a cloud.
    pub address: Address,
    /// The login; what the environment and the machine give when left out.
    pub credentials: Option<Credentials>,
    /// The server, where it is not the cloud's own.
    pub endpoint: Option<Url>,
    /// The region of an S3 bucket.
    pub region: Option<String>,
    /// Certificates (PEM) that are trusted besides those of the system.
    pub ca: Option<Vec<u8>>,
    /// How long the server may be silent within a request.
    pub patience: Duration,
}

impl From<Address> for StoreSettings {
    fn from(address: Address) -> Self {
        Self { address, credentials: None, endpoint: None, region: None, ca: None, patience: PATIENCE }
    }
}

impl From<&Path> for StoreSettings {
    fn from(folder: &Path) -> Self {
        Address::Folder(folder.to_owned()).into()
    }
}

impl StoreArgs {
    /// Checks the settings and reads the files that they name.
    ///
    /// # Errors
    ///
    /// Fails when a setting is wrong, does not go with the address, or its file cannot be read.
    pub fn settings(&self) -> Result<StoreSettings, Error> {
        let address: Address = self.store.parse()?;
        let mut settings = StoreSettings::from(address);
        let Some(cloud) = settings.address.cloud() else {
            return match self.for_clouds() {
                Some(name) => Err(wrong(name, "is for a store in a cloud, and --store is a folder; leave it out")),
                None => Ok(settings),
            };
        };
        if let Some(path) = &self.store_credentials {
            let text = read(path, "--store-credentials")?;
            let text = String::from_utf8(text).map_err(|_| unreadable("--store-credentials", path, "it is no text"))?;
            let parsed = Credentials::parse(cloud, &text);
            settings.credentials = Some(parsed.map_err(|why| unreadable("--store-credentials", path, &why))?);
        }
        settings.endpoint = self.store_endpoint.as_deref().map(|text| self.endpoint(text)).transpose()?;
        settings.ca = self.store_ca.as_deref().map(|path| read(path, "--store-ca")).transpose()?;
        settings.region.clone_from(&self.store_region);
        Ok(settings)
    }

    /// A setting that means nothing for a folder.
    fn for_clouds(&self) -> Option<&'static str> {
        let given = [
            (self.store_credentials.is_some(), "--store-credentials"),
            (self.store_endpoint.is_some(), "--store-endpoint"),
            (self.store_region.is_some(), "--store-region"),
            (self.store_ca.is_some(), "--store-ca"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, name)| name)
    }

    /// The text is not repeated in what is said: a password in it would be in the log then.
    fn endpoint(&self, text: &str) -> Result<Url, Error> {
        const NAME: &str = "--store-endpoint";
        let url =
            Url::parse(text).map_err(|why| wrong(NAME, &format!("is no address ({why}); write https://HOST:PORT")))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong(NAME, "holds a login or a query; put credentials into --store-credentials FILE"));
        }
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.store_plain_http || is_loopback(&url) => Ok(url),
            "http" => Err(wrong(
                NAME,
                "is http:// on another machine, where anyone on the way reads along; use https://, or say --store-plain-http",
            )),
            _ => Err(wrong(NAME, "is neither http:// nor https://")),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn read(path: &Path, setting: &str) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| unreadable(setting, path, &error.to_string()))
}

fn wrong(setting: &str, why: &str) -> Error {
    Error::Setting(format!("{setting} {why}"))
}

fn unreadable(setting: &str, path: &Path, why: &str) -> Error {
    Error::Setting(format!("the file {} of {setting} cannot be used: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        store: StoreArgs,
    }

    fn settings(args: &[&str]) -> Result<StoreSettings, String> {
        let program = Program::try_parse_from(["program"].iter().chain(args)).unwrap();
        program.store.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn a_store_in_a_cloud_takes_a_server_a_region_and_a_login() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials");
        fs::write(&file, "aws_access_key_id=me\naws_secret_access_key=hush\n").unwrap();
        let file = file.to_str().unwrap();
        let args = ["--store", "s3://models/kaai", "--store-endpoint", "http://127.0.0.1:9000"];
        let more = ["--store-region", "eu-west-1", "--store-credentials", file];
        let settings = settings(&[args, more].concat()).unwrap();
        assert_eq!(settings.region.as_deref(), Some("eu-west-1"));
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
    }

    #[test]
    fn a_server_without_tls_is_taken_only_where_that_was_said() {
        let far = ["--store", "s3://b", "--store-endpoint", "http://store.example:9000"];
        assert!(settings(&far).unwrap_err().contains("--store-plain-http"));
        assert!(settings(&[&far[..], &["--store-plain-http"]].concat()).is_ok());
        assert!(settings(&["--store", "s3://b", "--store-endpoint", "http://localhost:9000"]).is_ok());
    }

    #[test]
    fn secrets_in_an_address_are_refused_and_not_repeated() {
        for endpoint in ["https://me:hush@store.example", "https://store.example/?sig=hush", "me:hush"] {
            let error = settings(&["--store", "az://c", "--store-endpoint", endpoint]).unwrap_err();
            assert!(error.starts_with("--store-endpoint ") && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn what_is_for_clouds_does_not_go_with_a_folder() {
        let error = settings(&["--store", "/srv/store", "--store-region", "eu-west-1"]).unwrap_err();
        assert!(error.starts_with("--store-region is for a store in a cloud"), "{error}");
        assert!(settings(&["--store", "gs://b", "--store-ca", "/no/such/file"]).unwrap_err().contains("--store-ca"));
    }
}
